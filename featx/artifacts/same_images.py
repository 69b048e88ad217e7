"""Whether the images that rows were made from are those that are given now."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from featx.errors import PlanMismatch
from featx.images.contents import SAMPLED_FILES, content_hashes, files_state
from featx.images.manifest import Manifest
from featx.runtime.progress import SILENT, Reporter


def sample_of(count: int) -> npt.NDArray[np.intp]:
    """Rows whose bytes are compared even where the state says that no file was replaced."""
    if count == 0:
        return np.zeros(0, np.intp)
    return np.unique(np.linspace(0, count - 1, SAMPLED_FILES).astype(np.intp))


def record_of(state: str, hashes: npt.NDArray[np.uint8]) -> dict[str, str]:
    """What a table, a report or a run keeps of its images, for `refuse_other_files`.

    Args:
        state: the files' state before they were read.
        hashes: (N, 32) SHA-256 of every image's bytes; zeros where there were none.
    """
    sample = hashes[sample_of(len(hashes))]
    return {"state": state, "sha256": _digest(hashes), "sample": _digest(sample)}


def refuse_other_files(made: str, stored: object, manifest: Manifest, *, reporter: Reporter = SILENT) -> None:
    """Raise PlanMismatch if `made`, whose record of its images is `stored`, was made from others than these."""
    found = stored if isinstance(stored, dict) else {}
    if found.get("state") == files_state(manifest):
        rows = sample_of(len(manifest))
        kept = found.get("sample")
    else:
        rows = np.arange(len(manifest))
        kept = found.get("sha256")
    now = content_hashes(manifest, rows, reporter=reporter)
    if _digest(now) == kept:
        return
    unreadable = rows[~now.any(axis=1)]
    if len(unreadable):
        raise PlanMismatch(
            f"{made} is there, and whether it was made from these images cannot be seen: {len(unreadable):,} of them "
            f"cannot be read (first: {manifest.name(int(unreadable[0]))}). Repair them, choose another output, or "
            f"delete it"
        )
    raise PlanMismatch(
        f"{made} was made from other images of the same names, or they were changed since. Choose another output, or "
        f"delete it"
    )


def refuse_changed_images(
    made: str,
    manifest: Manifest,
    stored_state: str | None,
    hashes: npt.NDArray[np.uint8],
    *,
    reporter: Reporter = SILENT,
) -> None:
    """Raise PlanMismatch if an image is not the one its row was made from.

    Args:
        made: what holds the rows, for the message.
        stored_state: the files' state when it was begun; None if that is not known.
        hashes: (N, 32) SHA-256 of every image's bytes; zeros for rows that are to be left alone. An image that
            cannot be read any more contradicts nothing.
    """
    rows = np.flatnonzero(hashes.any(axis=1))
    if not len(rows):
        return
    if stored_state == files_state(manifest):
        rows = rows[sample_of(len(rows))]
    now = content_hashes(manifest, rows, reporter=reporter)
    changed = rows[now.any(axis=1) & (now != hashes[rows]).any(axis=1)]
    if len(changed):
        raise PlanMismatch(
            f"{made} was made from other images of the same names: {len(changed):,} of {len(rows):,} differ (first: "
            f"{manifest.name(int(changed[0]))}). Choose another output with -o, or delete it"
        )


def _digest(hashes: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(hashes).tobytes()).hexdigest()
