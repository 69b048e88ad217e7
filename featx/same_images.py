"""Whether the images that rows were made from are those that are given now."""

from __future__ import annotations

import numpy as np

from featx.images.contents import refuse_changed_images
from featx.images.scan import Manifest
from featx.progress import Reporter
from featx.store.reader import Features
from featx.store.schema import DONE, partial_path
from featx.store.writer import FeatureWriter


def refuse_other_images(features: Features, manifest: Manifest, reporter: Reporter) -> None:
    """Raise PlanMismatch if a successful row of a file was made from another image than is there now."""
    hashes = np.where((features.status == DONE)[:, None], features.sha256, 0)
    state = features.provenance["source"].get("files")
    refuse_changed_images(str(features.path), manifest, state, hashes, reporter=reporter)


def take_up(writer: FeatureWriter, manifest: Manifest, state: str, reporter: Reporter, seen: bytes = b"") -> None:
    """Go on with an unfinished file: refuse one of other images; of the same in another place it knows the place now.

    Args:
        state: of the files that are there now.
        seen: hashes of successful rows that were compared already.
    """
    have = Features(partial_path(writer.path))
    if done_hashes(have) != seen:
        refuse_other_images(have, manifest, reporter)
    # Also if no row is done: those to come are of the images that are there now.
    writer.replace_state(have.provenance["source"].get("files"), state)


def done_hashes(features: Features) -> bytes:
    """The hashes of a file's successful rows."""
    hashes: bytes = features.sha256[features.status == DONE].tobytes()
    return hashes
