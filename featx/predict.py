"""`featx predict`: a head tells the class of images, or of features extracted before."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx import __version__
from featx.atomic import is_hdf5
from featx.config import PredictConfig
from featx.errors import FeaturesMismatch, TooManyBadImages, UsageError, WeightsMismatch, allow_more, bad_allowed
from featx.heads.linear import LinearHead, recipe_of
from featx.images.contents import refuse_other_files
from featx.images.preprocess import Preprocess
from featx.images.scan import Manifest, scan
from featx.networks.runs import Run, is_run, read_run
from featx.predictions import refuse_to_destroy, sha256_of, take_finished, write_record, write_table
from featx.progress import ALREADY_THERE, SILENT, Reporter, format_duration
from featx.report import Report, printable
from featx.scores import KeptScores, Scored
from featx.store.reader import Features, open_features
from featx.store.schema import DONE


@dataclass(frozen=True)
class PredictReport(Report):
    """What was predicted by a head or a fine-tuned network: class -> images."""

    head: Path
    output: Path
    images: int
    failed: int
    predicted: dict[str, int]
    seconds: float

    def lines(self) -> list[str]:
        shown = ", ".join(f"{printable(name)} {count:,}" for name, count in list(self.predicted.items())[:12])
        lines = [f"{self.output}: {self.images:,} images in {format_duration(self.seconds)}: {shown}"]
        if self.failed:
            lines.append(
                f"{self.failed:,} images failed: their rows have no class, and the reason in the last column"
            )
        return lines


def predict_images(
    head: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: PredictConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> PredictReport:
    """Write the predicted class and the scores of every image to a CSV file.

    Columns: path, class, score:CLASS for every class (probabilities of a softmax head, decision values of an
    SVM), error. One line per image, in the source's order; failed images have an empty class. A multi-label head
    gives all classes with a score above 0, joined by |. Beside it, OUTPUT.json records what made it.

    The same call again does nothing, or goes on where an interrupted one has stopped.

    Args:
        head: a head, or the folder of a fine-tuned network.
        source: images as for `extract_features`; for a head also a features file.

    Raises:
        FeaturesMismatch: the features file holds other features than the head takes.
        WeightsMismatch: the network's weights are not those the head was fitted with.
        PlanMismatch: the output holds other predictions, or was changed since it was made.
        TooManyBadImages: more images failed than `config.max_bad` allows; no table is written.
        Interrupted: a signal came.
    """
    config, table, started = config or PredictConfig(), Path(output), time.perf_counter()
    refuse_to_destroy(table)
    model = read_run(head) if is_run(str(head)) else LinearHead.load(head)
    given = open_features(source) if is_hdf5(Path(source)) else scan(source, follow_links=config.follow_links)
    digest = digest_of(head, model)
    plan = {
        "head": digest,
        "images": given.digest,
        "request": {name: value for name, value in config.recorded().items() if name not in ("device", "weights")},
        "featx": __version__,
    }
    finished, scores = take_finished(table, plan), KeptScores(table, digest, config, reporter)
    if finished is not None:
        counted, files = finished
        if isinstance(given, Manifest):
            refuse_other_files(str(table), files, given, reporter=reporter)
        scores.discard()  # left there if the run was killed at its very end
        reporter.note(ALREADY_THERE)
        return PredictReport(head=Path(head), output=table, seconds=0.0, **counted)
    if isinstance(model, Run):
        if isinstance(given, Features):
            raise UsageError(
                f"{source} is a features file; {model.folder} is a whole network and takes images. For a head on its "
                f"features: featx extract IMAGES -b {model.folder}"
            )
        classes, (paths, outputs, errors) = model.classes, run_outputs(model, given, config, reporter, scores)
        names = [classes[best] for best in outputs.argmax(axis=1)]
    else:
        if isinstance(given, Features):
            paths, outputs, errors = _from_features(model, given)
        else:
            paths, outputs, errors = _from_images(model, given, config, reporter, scores)
        classes, names = model.classes, model.chosen(outputs.astype(np.float64))
    refuse_too_many_bad(errors, paths, config.max_bad)
    chosen = [None if row in errors else name for row, name in enumerate(names)]
    write_table(table, classes, paths, chosen, outputs, errors)
    counts: dict[str, Any] = {
        "images": len(paths),
        "failed": len(errors),
        "predicted": dict(Counter(name for name in chosen if name is not None).most_common()),
    }
    write_record(table, plan, counts, scores.files)
    scores.discard()
    return PredictReport(head=Path(head), output=table, seconds=time.perf_counter() - started, **counts)


def digest_of(head: str | os.PathLike[str], model: Run | LinearHead) -> str:
    """The SHA-256 of a head's file, or of a finished run's weights."""
    if isinstance(model, LinearHead):
        return sha256_of(Path(head))
    model.refuse_unfinished()
    return sha256_of(model.weights)


def layer_for(head: LinearHead, features: Features) -> str:
    """The layer of a features file that a head takes.

    Raises:
        FeaturesMismatch: the file does not hold it, or it was made in another way.
    """
    layer = head.layer
    if layer not in features:
        raise FeaturesMismatch(
            f"the head was fitted on {head.recipe['backbone']} {layer}; {features.path} holds "
            f"{', '.join(features)}. Extract again with: {head.extract_command}"
        )
    recipe = recipe_of(features.provenance, layer, features.layers[layer].pooling)
    head.refuse_other_features(layer, recipe, str(features.path))
    return layer


def _from_features(head: LinearHead, features: Features) -> Scored:
    layer = layer_for(head, features)
    outputs = np.full((len(features), len(head.classes)), np.nan, np.float32)
    rows = np.flatnonzero(features.status == DONE)
    if len(rows):
        outputs[rows] = head.outputs(features[layer][rows])
    return features.paths, np.nan_to_num(outputs), {f.row: f.reason for f in features.failures()}


def _from_images(
    head: LinearHead, manifest: Manifest, config: PredictConfig, reporter: Reporter, scores: KeptScores
) -> Scored:
    from featx.activations import SCORES, Extractor
    from featx.recipe import recipe_from

    recipe = recipe_from(
        head.recipe,
        layer=head.layer,
        weights=config.weights,
        device=config.device,
        batch_size=config.batch_size,
        decode=config.decode,
    )
    extractor = Extractor(recipe, reporter.download, head)
    if extractor.weights_sha256 != head.recipe["weights"]["sha256"]:
        raise WeightsMismatch(
            f"the head was fitted on features of weights with sha256 {head.recipe['weights']['sha256'][:16]}...; "
            f"{recipe.weights.name} has {extractor.weights_sha256[:16]}.... Say where they are now with --weights"
        )

    def outputs_of(features: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.floating]:
        return head.outputs_from(features[SCORES])

    return scores.of_images(manifest, extractor, outputs_of, len(head.classes))


def run_outputs(
    run: Run, manifest: Manifest, config: PredictConfig, reporter: Reporter, scores: KeptScores | None = None
) -> Scored:
    """Paths, probabilities (N, K) and failures of the images of a manifest, by a fine-tuned network.

    Args:
        scores: where they are kept on the way; by default in a folder that is gone afterwards.

    Raises:
        FileFormatError: the run is not finished.
        Interrupted: a signal came.
    """
    from featx.activations import Extractor
    from featx.networks.names import PROB
    from featx.networks.pooling import parse_pooling
    from featx.recipe import plan_recipe

    recipe = plan_recipe(
        backbone=str(run.folder),
        layers=PROB,
        weights="default",
        pooling=parse_pooling("none"),
        device=config.device,
        batch_size=config.batch_size,
        decode=config.decode,
        exif=bool(run.plan["request"]["exif"]),
    )
    recipe = replace(recipe, preprocess=Preprocess.from_values(run.preprocess))
    extractor = Extractor(recipe, reporter.download)

    def outputs_of(features: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.floating]:
        return np.asarray(features[PROB])

    if scores is not None:
        return scores.of_images(manifest, extractor, outputs_of, len(run.classes))
    with tempfile.TemporaryDirectory() as folder:
        passing = KeptScores(Path(folder) / "table.csv", "", config, reporter)
        return passing.of_images(manifest, extractor, outputs_of, len(run.classes))


def refuse_too_many_bad(errors: dict[int, str], paths: list[str], max_bad: float) -> None:
    """Raise TooManyBadImages, naming the first, if more failed than that share allows."""
    allowed = bad_allowed(max_bad, len(paths))
    if len(errors) > allowed:
        row = min(errors)
        raise TooManyBadImages(
            f"{len(errors)} of {len(paths)} images are bad, --max-bad {max_bad:g} allows {allowed}: "
            f"{printable(paths[row])}: {errors[row]}. Allow more with {allow_more(len(errors), len(paths))}"
        )
