"""The features file as an output: finished, of this plan, of these images; or unfinished and to be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifacts.artifact import Artifact, Stored, refuse_other_plan, refuse_other_versions
from featx.artifacts.same_images import refuse_changed_images
from featx.errors import FileFormatError, PlanMismatch, UsageError
from featx.images.manifest import Manifest
from featx.runtime.files import sha256_of_file
from featx.runtime.progress import SILENT, Reporter
from featx.status import Status
from featx.store.reader import Features
from featx.store.schema import essence, partial_path
from featx.store.writer import FeatureWriter


class FeaturesFile(Artifact[Features]):
    """A features file under its final name."""

    noun = "features file"
    endings = (".h5", ".hdf5")
    hint = ", then: featx export {stem}.h5 -o {name}"

    def read(self) -> Stored[Features] | None:
        if not os.path.lexists(self.path):
            return None
        try:
            features = Features(self.path)
        except FileFormatError as error:
            raise FileFormatError(f"{error}. It is in the way: choose another output with -o") from error
        if not features.complete:
            raise UsageError(f"{self.path} is an unfinished file under a finished file's name; rename or delete it")
        return Stored(essence(features.provenance), features)

    def take_as_requested(
        self,
        request: Mapping[str, Any],
        images: Manifest,
        *,
        shard: Mapping[str, Any] | None,
        weights_file: Path,
        code: str | None,
        projections: Mapping[str, str] | None,
    ) -> tuple[Features, Manifest] | None:
        """The finished file of the same request, and its images, without loading a network.

        None says nothing: another request can still mean the same features, which `take_finished` finds out.

        Args:
            request: the recorded options.
            images: of the whole source.
            shard: which part of them is meant, as the provenance has it; None for all.
            weights_file: where the weights are, if they are a file of the user's.
            projections: layer -> SHA-256 of what it is projected with, if `--reduce` names a file.
            code: what stands for the code that makes the network, if it is not featx's (`external.code.code_of`).
        """
        stored = self.read()
        if stored is None or stored.result is None:
            return None
        features = stored.result
        made = features.provenance
        if made["request"] != request or made.get("shard") != shard:
            return None
        if made.get("code") != code:
            return None
        reduced = (made.get("reduction") or {}).get("layers", {})
        if projections is not None and any(projections.get(name) != one["sha256"] for name, one in reduced.items()):
            return None
        if weights_file.is_file() and sha256_of_file(weights_file) != made["weights"]["sha256"]:
            return None
        if shard is None:
            if made["images"] != images.digest:
                return None
        else:
            row_of_path = {path: row for row, path in enumerate(images.paths)}
            rows = [row_of_path.get(path, -1) for path in features.raw_paths]
            if -1 in rows:
                return None
            images = images.part(rows)
        refuse_other_versions(self.path, made["versions"], finished=True, reporter=self.reporter)
        return features, images

    def take_finished(self, plan: Mapping[str, Any], images: Any = None) -> Features | None:
        """As every artifact's; `plan` is a provenance."""
        stored = self.read()
        if stored is None or stored.result is None:
            return None
        wanted = essence(plan)
        if images is not None and stored.plan["images"] != wanted["images"]:
            raise PlanMismatch(
                f"{self.path} is a features file of other images: {_changed_images(stored.result, images)}. Choose "
                f"another output with -o, or delete it"
            )
        refuse_other_plan(
            self.path, self.noun, _flat(stored.plan), _flat(wanted), finished=True, reporter=self.reporter
        )
        if images is not None:
            refuse_other_images(stored.result, images, self.reporter)
        return stored.result


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance's essence with its versions beside the rest, as the plans of other outputs have them."""
    return {**{key: value for key, value in plan.items() if key != "versions"}, **plan["versions"]}


def refuse_other_images(features: Features, images: Manifest, reporter: Reporter = SILENT) -> None:
    """Raise PlanMismatch if a successful row of a file was made from another image than is there now."""
    hashes = np.where((features.status == Status.DONE)[:, None], features.sha256, 0)
    state = features.provenance["source"].get("files")
    refuse_changed_images(str(features.path), images, state, hashes, reporter=reporter)


def resume(
    writer: FeatureWriter, images: Manifest, *, files: str, hardware: str, reporter: Reporter, compared: bytes = b""
) -> None:
    """Continue an unfinished file: refuse other images, and say that the hardware is another one.

    Afterwards the file knows the images' place and times as they are now.

    Args:
        files: the state of the images' files now (`images.contents.files_state`).
        hardware: what computes now; empty if that does not matter.
        compared: hashes of successful rows that were compared already (`done_hashes`).
    """
    have = Features(partial_path(writer.path))
    done = done_hashes(have)
    if done != compared:
        refuse_other_images(have, images, reporter)
    before = have.provenance["hardware"]
    if done and hardware != before:
        reporter.note(f"note: {have.path} was begun on {before}; this is {hardware}: later rows round differently")
    # Also if no row is done: those to come are of the images that are there now.
    writer.replace_state(have.provenance["source"].get("files"), files)


def done_hashes(features: Features) -> bytes:
    """The hashes of a file's successful rows."""
    hashes: bytes = features.sha256[features.status == Status.DONE].tobytes()
    return hashes


def _changed_images(features: Features, images: Manifest) -> str:
    have, want = set(features.raw_paths), set(images.paths)
    new, gone = sorted(want - have), sorted(have - want)
    parts = []
    for word, paths in (("new", new), ("gone", gone)):
        if paths:
            parts.append(f"{len(paths):,} {word} (first: {os.fsdecode(paths[0])!r})")
    return ", ".join(parts) or "the same paths with other labels, splits or order"
