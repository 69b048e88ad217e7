"""The page of `featx suspects`: thumbnails of what is suspicious, to be ticked and saved as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featx import __version__
from featx.analysis.suspects.find import KINDS, Suspect
from featx.figures.map_page import data_url, page
from featx.figures.thumbnails import jpeg, thumbnails
from featx.heads.selection.near_duplicates import Neighbourhood
from featx.images.sources.reopen import SourceImages
from featx.runtime.progress import Reporter
from featx.runtime.text import plural, printable
from featx.store.reader import Features

SHOWN = 100  # suspects of a kind with thumbnails; the table has all
_EXAMPLES = 3  # pairs on either side of the threshold
_SIDE = 128


def suspects_page(
    features: Features,
    layer: str,
    suspects: Sequence[Suspect],
    near: Neighbourhood,
    rows: npt.NDArray[np.intp],
    threshold: float,
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    reporter: Reporter,
) -> str:
    """The page.

    Args:
        rows: of the file, that `near` is of.
        lines: of the table, one for each suspect.
    """
    shown = {kind: [n for n, one in enumerate(suspects) if one.kind == kind][:SHOWN] for kind in KINDS}
    above, below = _examples(near, rows, threshold)
    wanted = {suspects[n].row for numbers in shown.values() for n in numbers}
    wanted |= {row for numbers in shown.values() for n in numbers for row in suspects[n].beside}
    wanted |= {row for pair in (*above, *below) for row in pair[:2]}
    order = sorted(wanted)
    source = SourceImages(features.provenance["source"])
    reporter.begin("thumbnails", len(order))
    seen, missing = thumbnails(
        order, lambda row: source.content(features.raw_paths[row], features.sha256[row].tobytes()), _SIDE,
        reporter.advance,
    )  # fmt: skip
    reporter.end()
    pictures = {str(row): data_url(jpeg(one, 80), "image/jpeg") for row, one in zip(order, seen, strict=True)}

    def named(row: int) -> dict[str, Any]:
        label = int(features.labels[row])
        name = printable(features.classes[label]) if label >= 0 else ""
        return {"row": row, "path": printable(features.paths[row]), "label": name}

    sections = [
        {
            "title": KINDS[kind],
            "count": sum(one.kind == kind for one in suspects),
            "items": [
                {**named(suspects[n].row), "line": n, "suggested": printable(suspects[n].suggested),
                 "detail": suspects[n].detail, "beside": [named(row) for row in suspects[n].beside]}
                for n in numbers
            ],
        }
        for kind, numbers in shown.items()
        if numbers
    ]  # fmt: skip
    examples = [
        {"title": title, "pairs": [[named(one), named(other), round(cosine, 3)] for one, other, cosine in pairs]}
        for title, pairs in (("just above", above), ("just below", below))
    ]
    count = len({one.row for one in suspects})
    summary = f"{plural(count, 'image')} of {len(features):,} deserve a second look, by {layer}."
    if missing:
        summary += f" {plural(len(missing), 'thumbnail')} cannot be read any more: grey."
    data = {
        "sections": sections, "pictures": pictures, "columns": list(columns), "lines": [list(line) for line in lines],
        "threshold": threshold, "examples": examples, "shown": SHOWN,
    }  # fmt: skip
    return page(
        "suspects.html", title=f"Suspects of {features.path.name}", summary=summary, footer=f"featx {__version__}",
        data=data,
    )  # fmt: skip


def _examples(
    near: Neighbourhood, rows: npt.NDArray[np.intp], threshold: float
) -> tuple[list[tuple[int, int, float]], list[tuple[int, int, float]]]:
    """Pairs whose cosine is just above the threshold, and just below."""
    above = [
        (int(rows[i]), int(rows[j]), float(cosine))
        for (i, j), cosine in zip(near.pairs[::-1][:_EXAMPLES], near.cosines[::-1][:_EXAMPLES], strict=True)
    ]
    best = np.where(near.similarities < threshold, near.similarities, -2.0)
    if not best.shape[1]:
        return above, []
    place = best.argmax(axis=1)
    each = best[np.arange(len(best)), place]
    below: list[tuple[int, int, float]] = []
    for i in np.argsort(-each, kind="stable").tolist():
        pair = int(rows[i]), int(rows[near.nearest[i, place[i]]])
        if each[i] > -2.0 and tuple(reversed(pair)) not in {one[:2] for one in below}:
            below.append((*pair, float(each[i])))
        if len(below) == _EXAMPLES:
            break
    return above, below
