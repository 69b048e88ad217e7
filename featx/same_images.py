"""Whether the images that rows, a table, a report or a network were made from are those that are given now."""

from __future__ import annotations

import numpy as np

from featx.errors import PlanMismatch
from featx.images.contents import are_same_files, refuse_changed_images
from featx.images.scan import Manifest
from featx.progress import Reporter
from featx.store.reader import Features
from featx.store.schema import DONE


def refuse_other_images(features: Features, manifest: Manifest, reporter: Reporter) -> None:
    """Raise PlanMismatch if a successful row of a file was made from another image than is there now."""
    hashes = np.where((features.status == DONE)[:, None], features.sha256, 0)
    state = features.provenance["source"].get("files")
    refuse_changed_images(str(features.path), manifest, state, hashes, reporter=reporter)


def refuse_other_files(made: str, stored: object, manifest: Manifest, reporter: Reporter) -> None:
    """Raise PlanMismatch if `made`, whose record of its images is `stored`, was made from others than these."""
    if not are_same_files(stored, manifest, reporter=reporter):
        raise PlanMismatch(
            f"{made} was made from other images of the same names, or they were changed since. Choose another "
            f"output, or delete it"
        )
