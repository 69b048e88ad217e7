"""Scores of images, by a head or a whole network, kept on the disk while they are being computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.atomic import disk_errors
from featx.config import PredictConfig
from featx.errors import Interrupted
from featx.images.contents import files_state, record_of
from featx.images.scan import Manifest
from featx.progress import Reporter, graceful_stop
from featx.same_images import take_up
from featx.store.reader import Features
from featx.store.schema import DONE, FilePlan, LayerSpec, partial_path

if TYPE_CHECKING:
    from featx.activations import Extractor

Scored = tuple[list[str], npt.NDArray[np.floating], dict[int, str]]  # paths, scores (N, K), row -> why it failed


class KeptScores:
    """Scores of images, kept beside the table they are for until it is written, so that a killed run goes on.

    They are one layer of a features file, `TABLE.scores.partial`, and as safe.
    """

    def __init__(self, table: Path, head: str, config: PredictConfig, reporter: Reporter) -> None:
        self._path = table.with_name(f"{table.name}.scores")
        self._head, self._config, self._reporter = head, config, reporter
        self.files: dict[str, str] = {}  # the record of the images, once they are computed

    def of_images(
        self,
        manifest: Manifest,
        extractor: Extractor,
        outputs_of: Callable[[dict[str, npt.NDArray[Any]]], npt.NDArray[np.floating]],
        classes: int,
    ) -> Scored:
        """Compute what is not there yet.

        Raises:
            PlanMismatch: what is there belongs to other images, also of the same names, another head or network.
            Interrupted: a signal came; the same command goes on.
        """
        from featx.activations import versions
        from featx.store.writer import FeatureWriter
        from featx.streaming import stream_features

        layer = LayerSpec("scores", "head", "none", "none", (classes,), "float32")
        state = files_state(manifest)
        provenance = {
            **extractor.recipe.describe(extractor.weights_sha256), "head": self._head, "images": manifest.digest,
            "count": len(manifest), "layers": {"scores": {"node": "head", "relu": "none"}}, "versions": versions(),
            "request": {}, "command": "featx predict", "hardware": "",
            "source": {"path": "", "kind": manifest.kind, "files": state},
        }  # fmt: skip
        none = [-1] * len(manifest)
        plan = FilePlan(manifest.paths, none, (), none, (), [layer], json.loads(json.dumps(provenance)))
        with FeatureWriter.open(self._path, plan, retry_failed=True) as writer:
            take_up(writer, manifest, state, self._reporter)
            self._reporter.begin("predict", len(manifest), int((writer.status == DONE).sum()))

            def keep(block: Any, features: dict[str, npt.NDArray[Any]]) -> None:
                good = block.status == DONE
                rows = np.full((len(good), classes), np.nan, np.float32)
                if good.any():
                    rows[good] = outputs_of({name: values[good] for name, values in features.items()})
                writer.write_block(
                    block.first, {"scores": rows}, status=block.status, sha256=block.sha256,
                    orientation=block.orientation, decoder=block.decoder, reasons=block.reasons,
                )  # fmt: skip
                self._reporter.advance(len(good))

            blocks = writer.pending_blocks(extractor.recipe.batch_size)
            try:
                with graceful_stop() as stop:
                    stream_features(manifest, extractor, keep, blocks=blocks, workers=self._config.workers, stop=stop)
            finally:
                extractor.close()
            self._reporter.end()
            left = len(writer.pending_blocks(1))
        if stop.signal is not None and left:
            raise Interrupted(
                f"stopped by signal {stop.signal}: {left:,} of {len(manifest):,} images are left. Run the same "
                f"command again to go on",
                128 + stop.signal,
            )
        found = Features(partial_path(self._path))
        self.files = record_of(state, found.sha256)
        errors = {failure.row: failure.reason for failure in found.failures()}
        return found.paths, np.nan_to_num(np.array(found["scores"])), errors

    def discard(self) -> None:
        """Delete them: the table is there."""
        with disk_errors(self._path):
            partial_path(self._path).unlink(missing_ok=True)
