"""Scores of images by a model, stored on disk while they are computed, so that a killed run goes on."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.features_file import resume
from featx.artifacts.same_images import record_of
from featx.errors import Interrupted, TooManyBadImages, allow_more, bad_allowed
from featx.extraction.model import Model, Models
from featx.heads.decision import Scores
from featx.images.contents import files_state
from featx.images.manifest import Manifest
from featx.images.sources.video.clips import refuse_unsuited
from featx.options.extraction import PredictConfig
from featx.runtime.files import disk_errors
from featx.runtime.progress import Reporter
from featx.runtime.signals import graceful_stop
from featx.runtime.text import plural, printable
from featx.status import Status
from featx.store.reader import Features
from featx.store.schema import FilePlan, LayerSpec, partial_path


@dataclass(frozen=True)
class Scored:
    """Scores of N images.

    Attributes:
        scores: (N, K); 0 for those that failed.
        errors: row -> why it failed.
        images: the record of the images (`same_images.record_of`); empty for rows of a features file.
        sha256: (N, 32) of the images' bytes, zeros where they could not be read.
    """

    paths: list[str]
    scores: Scores
    errors: dict[int, str]
    images: dict[str, str]
    sha256: npt.NDArray[np.uint8]

    def refuse_too_many_bad(self, max_bad: float) -> None:
        """Raise TooManyBadImages, naming the first, if more failed than that share allows."""
        allowed = bad_allowed(max_bad, len(self.paths))
        if len(self.errors) > allowed:
            row = min(self.errors)
            raise TooManyBadImages(
                f"{len(self.errors):,} of {plural(len(self.paths), 'image')} failed, --max-bad {max_bad:g} allows "
                f"{allowed}: {printable(self.paths[row])}: {self.errors[row]}. Allow more with "
                f"{allow_more(len(self.errors), len(self.paths))}"
            )


class StoredScores:
    """Scores of images beside the table they are for, until it is written.

    They are one layer of a features file, `TABLE.scores.partial`, and as safe.
    """

    def __init__(self, table: Path, model: Model | Models, config: PredictConfig, reporter: Reporter) -> None:
        self._path = table.with_name(f"{table.name}.scores")
        self._models = model if isinstance(model, Models) else Models((model,))
        self._config, self._reporter = config, reporter

    def of_images(self, manifest: Manifest) -> Scored:
        """As `all_of_images`, of one model."""
        return self.all_of_images(manifest)[0]

    def all_of_images(self, manifest: Manifest) -> list[Scored]:
        """Compute what is not there yet.

        Raises:
            PlanMismatch: what is there belongs to other images, also of the same names, or to another model.
            Interrupted: a signal came; the same command goes on.
        """
        from featx.extraction.engine import score_names
        from featx.extraction.pipeline import stream_features
        from featx.extraction.provenance import hardware, versions
        from featx.networks.registry import takes_flow
        from featx.store.writer import FeatureWriter

        models, config = self._models, self._config
        recipe = models.recipe(
            device=config.device, batch_size=config.batch_size, decode=config.decode, weights_file=config.weights_file
        )
        name = recipe.backbone.name
        refuse_unsuited(manifest, name, recipe.preprocess.crop, takes_flow=takes_flow(name))
        engine = models.engine(recipe, self._reporter)
        names = score_names(len(models.all))
        layers = [
            LayerSpec(name, "head", "none", "none", (len(model.classes),), "float64")
            for name, model in zip(names, models.all, strict=True)
        ]
        state = files_state(manifest)
        provenance = {
            **recipe.to_dict(engine.weights_sha256), "head": models.digest, "images": manifest.digest,
            "count": len(manifest), "layers": {name: {"node": "head", "relu": "none"} for name in names},
            "versions": versions(recipe.decode),
            "request": {}, "command": "featx predict", "hardware": hardware(engine),
            "source": {"path": "", "kind": manifest.kind, "files": state},
        }  # fmt: skip
        none = [-1] * len(manifest)
        plan = FilePlan(manifest.paths, none, (), none, (), layers, json.loads(json.dumps(provenance)))
        with FeatureWriter.open(self._path, plan, retry_failed=True) as writer:
            resume(writer, manifest, files=state, hardware=provenance["hardware"], reporter=self._reporter)
            self._reporter.begin("predict", len(manifest), int((writer.status == Status.DONE).sum()))

            def store(block: Any, outputs: dict[str, npt.NDArray[Any]]) -> None:
                good = block.status == Status.DONE
                rows = dict(zip(names, models.scores(outputs), strict=True))
                for scores in rows.values():
                    scores[~good] = np.nan
                writer.write_block(
                    block.first, rows, status=block.status, sha256=block.sha256,
                    orientation=block.orientation, decoder=block.decoder, reasons=block.reasons,
                )  # fmt: skip
                self._reporter.advance(len(good))

            blocks = writer.pending_blocks(recipe.batch_size)
            try:
                with graceful_stop() as stop:
                    stream_features(
                        manifest, engine, store, blocks=blocks, workers=config.workers, stop=stop,
                        image_timeout=config.image_timeout,
                    )  # fmt: skip
            finally:
                engine.close()
            self._reporter.end()
            left = len(writer.pending_blocks(1))
        if stop.signal is not None and left:
            raise Interrupted(
                f"stopped by signal {stop.signal}: {left:,} of {plural(len(manifest), 'image')} left. Run the same "
                f"command again to resume",
                128 + stop.signal,
            )
        found = Features(partial_path(self._path))
        errors = {failure.row: failure.reason for failure in found.failures()}
        record = record_of(state, found.sha256)
        return [
            Scored(found.paths, np.nan_to_num(np.array(found[name])), errors, record, found.sha256) for name in names
        ]

    def discard(self) -> None:
        """Delete them: the table is there."""
        with disk_errors(self._path):
            partial_path(self._path).unlink(missing_ok=True)


def score_images(model: Model, manifest: Manifest, config: PredictConfig, reporter: Reporter) -> Scored:
    """As `StoredScores.of_images`, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return StoredScores(Path(folder) / "table.csv", model, config, reporter).of_images(manifest)
