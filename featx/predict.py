"""`featx predict`: a head tells the class of images, or of features extracted before."""

from __future__ import annotations

import csv
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.atomic import disk_errors, refuse_special_file, replacing
from featx.config import PredictConfig
from featx.errors import FeaturesMismatch, Interrupted, TooManyBadImages, UsageError, WeightsMismatch
from featx.heads.linear import LinearHead, recipe_of
from featx.images.preprocess import Preprocess
from featx.images.scan import Manifest, scan
from featx.networks.names import PROB
from featx.networks.runs import Run, is_run, read_run
from featx.progress import SILENT, Reporter, format_duration, graceful_stop
from featx.report import Report, printable
from featx.store.reader import Features, open_features
from featx.store.schema import DONE

if TYPE_CHECKING:
    from featx.activations import Extractor

FIRST_COLUMNS = b"path,class,"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


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
    gives all classes with a score above 0, joined by |.

    Args:
        head: a head, or the folder of a fine-tuned network.
        source: images as for `extract_features`; for a head also a features file.

    Raises:
        FeaturesMismatch: the features file holds other features than the head takes.
        WeightsMismatch: the network's weights are not those the head was fitted with.
        TooManyBadImages: more images failed than `config.max_bad` allows; nothing is written.
    """
    config, started = config or PredictConfig(), time.perf_counter()
    _refuse_to_destroy(Path(output))
    if is_run(str(head)):
        run = read_run(head)
        manifest = _images_only(Path(source), run, config.follow_links)
        classes, (paths, outputs, errors) = run.classes, run_outputs(run, manifest, config, reporter)
        names = [classes[best] for best in outputs.argmax(axis=1)]
    else:
        loaded = LinearHead.load(head)
        if _is_hdf5(Path(source)):
            paths, outputs, errors = _from_features(loaded, Path(source))
        else:
            paths, outputs, errors = _from_images(loaded, Path(source), config, reporter)
        classes, names = loaded.classes, loaded.chosen(outputs)
    _refuse_too_many_bad(errors, paths, config.max_bad)
    chosen = [None if row in errors else name for row, name in enumerate(names)]
    _write_csv(Path(output), classes, paths, chosen, outputs, errors)
    return PredictReport(
        head=Path(head),
        output=Path(output),
        images=len(paths),
        failed=len(errors),
        predicted=dict(Counter(name for name in chosen if name is not None).most_common()),
        seconds=time.perf_counter() - started,
    )


def _is_hdf5(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE


def _refuse_to_destroy(output: Path) -> None:
    """An earlier table of predictions may be replaced; anything else that is there may not."""
    with disk_errors(output):
        if not os.path.lexists(output):
            return
        refuse_special_file(output)
        with output.open("rb") as file:
            if file.read(len(FIRST_COLUMNS)) != FIRST_COLUMNS:
                raise UsageError(f"{output} is there and is no table of predictions; choose another name with -o")


Scored = tuple[list[str], npt.NDArray[np.float64], dict[int, str]]


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


def _from_features(head: LinearHead, path: Path) -> Scored:
    features = open_features(path)
    layer = layer_for(head, features)
    outputs = np.full((len(features), len(head.classes)), np.nan)
    rows = np.flatnonzero(features.status == DONE)
    if len(rows):
        outputs[rows] = head.outputs(features[layer][rows])
    return features.paths, np.nan_to_num(outputs), {f.row: f.reason for f in features.failures()}


def _from_images(head: LinearHead, source: Path, config: PredictConfig, reporter: Reporter) -> Scored:
    from featx.activations import Extractor
    from featx.recipe import recipe_from

    manifest = scan(source, follow_links=config.follow_links)
    recipe = recipe_from(
        head.recipe,
        layer=head.layer,
        weights=config.weights,
        device=config.device,
        batch_size=config.batch_size,
        decode=config.decode,
    )
    extractor = Extractor(recipe, reporter.download)
    if extractor.weights_sha256 != head.recipe["weights"]["sha256"]:
        raise WeightsMismatch(
            f"the head was fitted on features of weights with sha256 {head.recipe['weights']['sha256'][:16]}...; "
            f"{recipe.weights.name} has {extractor.weights_sha256[:16]}.... Say where they are now with --weights"
        )
    outputs_of = lambda features: head.outputs(features[head.layer])  # noqa: E731  # one expression, used once
    return _stream(manifest, extractor, outputs_of, len(head.classes), config.workers, reporter)


def _images_only(source: Path, run: Run, follow_links: bool) -> Manifest:
    if _is_hdf5(source):
        raise UsageError(
            f"{source} is a features file; {run.folder} is a whole network and takes images. For a head on its "
            f"features: featx extract IMAGES -b {run.folder}"
        )
    return scan(source, follow_links=follow_links)


def run_outputs(run: Run, manifest: Manifest, config: PredictConfig, reporter: Reporter) -> Scored:
    """Paths, probabilities (N, K) and failures of the images of a manifest, by a fine-tuned network.

    Raises:
        FileFormatError: the run is not finished.
        Interrupted: a signal came.
    """
    from featx.activations import Extractor
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

    def outputs_of(features: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        return np.asarray(features[PROB], np.float64)

    return _stream(manifest, extractor, outputs_of, len(run.classes), config.workers, reporter)


def _stream(
    manifest: Manifest,
    extractor: Extractor,
    outputs_of: Callable[[dict[str, npt.NDArray[Any]]], npt.NDArray[np.float64]],
    classes: int,
    workers: int | None,
    reporter: Reporter,
) -> Scored:
    from featx.streaming import stream_features

    outputs = np.zeros((len(manifest), classes))
    errors: dict[int, str] = {}
    reporter.begin("predict", len(manifest))

    def keep(block: Any, features: dict[str, npt.NDArray[Any]]) -> None:
        good = np.flatnonzero(block.status == DONE)
        outputs[block.first + good] = outputs_of({name: values[good] for name, values in features.items()})
        errors.update({block.first + place: reason for place, reason in block.reasons.items()})
        reporter.advance(len(block.status))

    blocks = range(0, len(manifest), extractor.recipe.batch_size)
    try:
        with graceful_stop() as stop:
            stream_features(manifest, extractor, keep, blocks=blocks, workers=workers, stop=stop)
    finally:
        extractor.close()
    reporter.end()
    if stop.signal is not None:
        raise Interrupted(f"stopped by signal {stop.signal}; nothing was written", 128 + stop.signal)
    return [os.fsdecode(path) for path in manifest.paths], outputs, errors


def _refuse_too_many_bad(errors: dict[int, str], paths: list[str], max_bad: float) -> None:
    allowed = math.floor(max_bad * len(paths))
    if len(errors) > allowed:
        row = min(errors)
        raise TooManyBadImages(
            f"{len(errors)} of {len(paths)} images are bad, --max-bad {max_bad:g} allows {allowed}: "
            f"{printable(paths[row])}: {errors[row]}. Allow more with --max-bad 5%"
        )


def _write_csv(
    output: Path,
    classes: list[str],
    paths: list[str],
    chosen: Iterable[str | None],
    outputs: npt.NDArray[np.float64],
    errors: dict[int, str],
) -> None:
    # surrogateescape: file names that are not UTF-8 come out as the bytes they are.
    with (
        replacing(output) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "class", *(f"score:{name}" for name in classes), "error"])
        for row, (path, name) in enumerate(zip(paths, chosen, strict=True)):
            scores = [""] * len(classes) if name is None else [f"{v:.6g}" for v in outputs[row]]
            writer.writerow([path, name or "", *scores, errors.get(row, "")])
