"""`featx suspects`: which images of a data set deserve a second look?"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.analysis.suspects.find import KINDS, Suspect, duplicate_suspects, label_suspects, outlier_suspects
from featx.analysis.suspects.labels import LabelDoubts, doubts
from featx.analysis.suspects.photos import Photos, faults, look_at
from featx.artifacts.artifact import plan_of, write_json
from featx.artifacts.head_rows import kept_together
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import NonFiniteRow, UsageError
from featx.heads.labels import is_multilabel, labels_among
from featx.heads.selection.near_duplicates import Neighbourhood
from featx.heads.splits import copies_of
from featx.images.sources.reopen import SourceImages
from featx.options.analysis import SuspectsConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural
from featx.status import Status
from featx.store.open import open_features
from featx.store.reader import Features, flat_rows

TABLE, RECORD, PAGE = "suspects.csv", "suspects.json", "suspects.html"
COLUMNS = ["remove", "issue", "row", "path", "label", "split", "score", "suggestion", "detail"]


def find_suspects(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: SuspectsConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Find labels that are probably wrong, duplicates, outliers and poor photographs.

    Writes suspects.csv, a row for each suspicion, the most suspicious first; suspects.json, the same with the
    thresholds; and suspects.html, a page with thumbnails, where images can be ticked for `clean_list`.

    Labels are doubted by confident learning (Northcutt et al., 2021) on the probabilities of softmax heads that were
    fitted without the image. Near-duplicates are pairs whose centred features have a cosine of `config.near` or more.
    Outliers lie further from their nearest neighbours than 1.5 interquartile ranges above the upper quartile. The
    same call again goes on where an interrupted one has stopped.

    Args:
        features: a features file; its images are read again, where they are still there.

    Raises:
        UsageError and its children: no such layer, too few images.
        LabelError: too few images of every class for the folds.
        PlanMismatch: the folder holds something else.
    """
    config = config or SuspectsConfig()
    opened = open_features(features)
    layer = opened.only_layer(config.layer)
    rows = np.flatnonzero(opened.status == Status.DONE)
    if len(rows) < 2:
        raise UsageError(f"{opened.path} has {plural(len(rows), 'image')}; two are needed")
    folder = ShownFolder(Path(output), [TABLE, RECORD, PAGE], "featx suspects", reporter)
    plan = plan_of(config, without=("device", "layer"), show="suspects", features=opened.digest, layer=layer)
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    labelled = _labelled(opened, reporter)
    folder.begin(plan)
    near = _near(opened, layer, rows, config, folder, reporter)
    labels = np.where(opened.status == Status.DONE, opened.labels, -1).astype(np.int32)
    suspects: list[Suspect] = []
    thresholds: dict[str, Any] = {"near-duplicate": config.near}
    if len(labelled):
        found, classes = _label_doubts(opened, layer, labelled, config, folder, reporter)
        suspects += label_suspects(labelled, found, labels, classes, near, rows)
        thresholds["label"] = dict(zip(classes, found.thresholds.tolist(), strict=True))
    suspects += duplicate_suspects(near, rows, copies_of(opened.sha256), opened.split_of, labels)
    outliers, thresholds["outlier"] = outlier_suspects(near, rows)
    suspects += outliers
    if not config.no_photos:
        photos = _photos(opened, rows, folder, reporter)
        for kind, of_kind in faults(photos).items():
            suspects += [Suspect(kind, int(rows[place]), score, "", words) for place, score, words in of_kind]
        unread = int((photos.sizes[:, 0] == 0).sum())
        if unread:
            reporter.note(f"note: {plural(unread, 'image')} cannot be read any more, or have changed: not looked at")
    order = {kind: number for number, kind in enumerate(KINDS)}
    suspects.sort(key=lambda one: order[one.kind])  # stable: within a kind the order stays
    _write(opened, suspects, thresholds, layer, near, rows, folder.path, config, reporter)
    counts = {kind: sum(one.kind == kind for one in suspects) for kind in KINDS}
    table = [[kind, str(count), KINDS[kind]] for kind, count in counts.items()]
    return folder.finish(plan, ["issue", "images", ""], table)


def _labelled(features: Features, reporter: Reporter) -> npt.NDArray[np.intp]:
    """Rows whose labels can be doubted; none, with a note, where there are no two classes."""
    rows = features.usable()
    names = [features.classes[label] for label in np.unique(features.labels[rows])]
    if len(names) >= 2 and not is_multilabel(names, features.source_kind):
        return rows
    why = "images have several classes" if len(names) >= 2 else "there are no two classes"
    reporter.note(f"note: labels are not looked at: {why}")
    return rows[:0]


def _near(
    features: Features, layer: str, rows: npt.NDArray[np.intp], config: SuspectsConfig, folder: ShownFolder,
    reporter: Reporter,
) -> Neighbourhood:  # fmt: skip
    from featx.heads.selection.near_duplicates import neighbourhood
    from featx.runtime.device import choose_device

    def compute() -> dict[str, npt.NDArray[Any]]:
        reporter.begin("near-duplicates", len(rows))
        values = flat_rows(features[layer])
        found = neighbourhood(
            values, rows, config.near, config.neighbors, choose_device(config.device), reporter.advance
        )
        reporter.end()
        return vars(found)

    return Neighbourhood(**folder.remembered("near", compute))


def _label_doubts(
    features: Features, layer: str, rows: npt.NDArray[np.intp], config: SuspectsConfig, folder: ShownFolder,
    reporter: Reporter,
) -> tuple[LabelDoubts, list[str]]:  # fmt: skip
    """Of labelled rows, and the classes they are among."""
    classes = [features.classes[label] for label in np.unique(features.labels[rows])]
    labels = labels_among(classes, features.classes, features.labels, multilabel=False)[rows].astype(np.int32)

    def compute() -> dict[str, npt.NDArray[Any]]:
        from featx.heads.selection.search import fit_heads
        from featx.runtime.device import choose_device
        from featx.runtime.memory import free_memory

        device = choose_device(config.device)
        memory = config.memory or free_memory(device) // 2
        try:
            found = fit_heads(
                "softmax", flat_rows(features[layer]), rows, labels, classes, c=config.c, folds=config.folds,
                seed=config.seed, normalize="l2", device=device, memory_bytes=memory,
                keep_scores=True, copies=kept_together(features, rows, config.group_by), reporter=reporter,
            )  # fmt: skip
        except NonFiniteRow as error:
            raise features.damaged_row(layer, error.row) from error
        assert found.held_out_scores is not None
        return {"scores": found.held_out_scores}

    from scipy.special import softmax

    scores = folder.remembered("labels", compute)["scores"].astype(np.float64)
    known = ~np.isnan(scores).any(axis=1)  # the only image of a class is held out by no fold
    probabilities = np.zeros_like(scores)
    probabilities[known] = softmax(scores[known], axis=1)
    probabilities[~known, labels[~known]] = 1.0
    return doubts(probabilities, labels), classes


def _photos(features: Features, rows: npt.NDArray[np.intp], folder: ShownFolder, reporter: Reporter) -> Photos:
    source = SourceImages(features.provenance["source"])

    def compute() -> dict[str, npt.NDArray[Any]]:
        reporter.begin("photographs", len(rows))
        found = look_at(
            rows.tolist(), lambda row: source.content(features.raw_paths[row], features.sha256[row].tobytes()),
            reporter.advance,
        )  # fmt: skip
        reporter.end()
        return vars(found)

    return Photos(**folder.remembered("photos", compute))


def _write(
    features: Features,
    suspects: list[Suspect],
    thresholds: dict[str, Any],
    layer: str,
    near: Neighbourhood,
    rows: npt.NDArray[np.intp],
    folder: Path,
    config: SuspectsConfig,
    reporter: Reporter,
) -> None:
    from featx.reporting.of_suspects import suspects_page

    lines = [_line(features, one) for one in suspects]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(lines)
    with replacing(folder / TABLE) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")
    listed = [
        {**dict(zip(COLUMNS[1:], line[1:], strict=True)), "row": one.row, "score": one.score, "beside": one.beside}
        for one, line in zip(suspects, lines, strict=True)
    ]
    described = {"features": str(features.path), "layer": layer, "thresholds": thresholds, "suspects": listed}
    write_json(folder / RECORD, described)
    page = suspects_page(features, layer, suspects, near, rows, config.near, COLUMNS, lines, reporter)
    with replacing(folder / PAGE) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")


def _line(features: Features, one: Suspect) -> list[str]:
    label, split = int(features.labels[one.row]), int(features.split_of[one.row])
    return [
        "", one.kind, str(one.row), features.paths[one.row], features.classes[label] if label >= 0 else "",
        features.splits[split] if split >= 0 else "", f"{abs(one.score):.6g}", one.suggested, one.detail,
    ]  # fmt: skip
