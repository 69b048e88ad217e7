"""The projections of an extraction: principal components of a random sample of its images, or random by a seed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import FeatxError, Interrupted, UsageError
from featx.extraction.engine import Engine
from featx.extraction.pipeline import stream_features
from featx.extraction.recipe import Recipe
from featx.extraction.reduction.projection import PCA, Projection, Reduction, reduction_of
from featx.images.block import Block
from featx.images.manifest import Manifest
from featx.networks.weights_file import weights_file
from featx.options.extraction import ExtractConfig
from featx.runtime.files import disk_errors, sha256_of_file
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.signals import graceful_stop
from featx.runtime.text import plural
from featx.status import Status
from featx.store.reader import Features
from featx.store.schema import partial_path

_PER_COMPONENT, _LEAST = 10, 2000  # images of the sample
_CHUNK_BYTES = 256 << 20


def sample_size(components: int, images: int) -> int:
    """How many images principal components are fitted on: ten for each, 2,000 at least, or all there are."""
    return min(images, max(_LEAST, _PER_COMPONENT * components))


def fitted(recipe: Recipe, manifest: Manifest, output: Path, config: ExtractConfig, reporter: Reporter) -> Recipe:
    """The recipe with the projections that it lacks: those of an earlier run for the same output, or new ones.

    Raises:
        UsageError: fewer images than components.
        Interrupted: a signal came.
    """
    reduction = recipe.reduction
    if reduction is None or reduction.layers:
        return recipe
    if reduction.method != PCA:
        return replace(recipe, reduction=replace(reduction, layers=_random(recipe, reduction)))
    earlier = _of_earlier_run(recipe, manifest, output, config)
    return replace(recipe, reduction=earlier or _principal_components(recipe, manifest, output, config, reporter))


def without_images(recipe: Recipe) -> Recipe:
    """As `fitted`, where there are no images yet.

    Raises:
        UsageError: principal components, which need them.
    """
    if recipe.reduction is not None and not recipe.reduction.layers and recipe.reduction.method == PCA:
        raise UsageError(
            f"reduce is pca:{recipe.reduction.components}, which is fitted on images by featx extract; give the "
            f"features file or head that keeps it"
        )
    return fitted(recipe, Manifest("list", Path(), Path(), (), (), (), (), ()), Path(), ExtractConfig(), SILENT)


def _whole(recipe: Recipe) -> dict[str, int]:
    """layer -> its number of values before it is reduced."""
    return {spec.name: int(np.prod(spec.shape)) for spec in replace(recipe, reduction=None).layer_specs()}


def _random(recipe: Recipe, reduction: Reduction) -> dict[str, Projection]:
    """Sparse random projections (Li, Hastie & Church 2006, density 1/sqrt(D)), as scikit-learn's of that seed."""
    from sklearn.random_projection import SparseRandomProjection  # a second that most extractions need not wait

    found = {}
    for layer, values in _whole(recipe).items():
        made = SparseRandomProjection(n_components=reduction.components, random_state=reduction.seed)
        matrix = made.fit(np.zeros((1, values), np.float32)).components_.tocsr()
        matrix.sort_indices()
        parts = {
            "data": matrix.data.astype("<f4"),
            "indices": matrix.indices.astype("<i4"),
            "indptr": matrix.indptr.astype("<i4"),
        }
        found[layer] = Projection(values, parts)
    return found


def _of_earlier_run(recipe: Recipe, manifest: Manifest, output: Path, config: ExtractConfig) -> Reduction | None:
    """What a file under that name, finished or not, was reduced with, if it was made in the same way."""
    for path in (partial_path(output), output):
        if not path.is_file():
            continue
        with contextlib.suppress(FeatxError):  # a file that is something else is refused when it is opened
            features = Features(path)
            made, file = features.provenance, weights_file(config.backbone, config.weights)
            wanted = replace(recipe, reduction=None).to_dict(made["weights"]["sha256"])
            same = all(made.get(key) == value for key, value in wanted.items())
            same = same and (config.update or made["images"] == manifest.digest)
            same = same and not (file.is_file() and sha256_of_file(file) != made["weights"]["sha256"])
            found = reduction_of(features) if same else None
            mine = recipe.reduction
            if found and mine and (found.method, found.components, found.seed) == (PCA, mine.components, mine.seed):
                return found
    return None


def _principal_components(
    recipe: Recipe, manifest: Manifest, output: Path, config: ExtractConfig, reporter: Reporter
) -> Reduction:
    reduction = recipe.reduction
    assert reduction is not None
    count = sample_size(reduction.components, len(manifest))
    rows = np.sort(np.random.default_rng(reduction.seed).permutation(len(manifest))[:count])
    engine = Engine(replace(recipe, reduction=None, dtype="float32"), reporter.download)
    with disk_errors(output), contextlib.ExitStack() as stack:
        output.parent.mkdir(parents=True, exist_ok=True)
        kept = {}
        for name, values in _whole(recipe).items():  # files without names: they are gone with the process
            file = stack.enter_context(tempfile.TemporaryFile(dir=output.parent))
            kept[name] = np.memmap(file, np.float32, "w+", shape=(count, values))
        good = np.zeros(count, bool)

        def keep(block: Block, features: dict[str, npt.NDArray[Any]]) -> None:
            places = slice(block.first, block.first + len(block.status))
            for name, values in features.items():
                kept[name][places] = values.reshape(len(values), -1)
            good[places] = block.status == Status.DONE
            reporter.advance(len(block.status))

        reporter.begin("sample for the PCA", count)
        try:
            with graceful_stop() as stop:
                stream_features(
                    manifest.part(rows.tolist()), engine, keep, blocks=range(0, count, recipe.batch_size),
                    workers=config.workers, stop=stop, image_timeout=config.image_timeout,
                )  # fmt: skip
        finally:
            engine.close()
        reporter.end()
        if stop.signal is not None:
            raise Interrupted(
                f"stopped by signal {stop.signal} while the PCA was fitted; run the same command again",
                128 + stop.signal,
            )
        used = np.flatnonzero(good)
        if len(used) <= reduction.components:
            raise UsageError(
                f"--reduce pca:{reduction.components} needs more than {reduction.components} images; there are "
                f"{len(used)} to fit it on"
            )
        layers = {name: _pca(values, used, reduction.components, name, reporter) for name, values in kept.items()}
    said = ", ".join(f"{share:.1%} of {name}" for name, share in explained(layers).items())
    reporter.note(f"PCA of {plural(len(used), 'image')}: {reduction.components} components have {said}'s variance")
    return replace(reduction, sample=len(used), layers=layers)


def explained(layers: Mapping[str, Projection]) -> dict[str, float]:
    """layer -> share of the sample's variance that the principal components have."""
    return {name: float(one.arrays["explained_variance_ratio"].sum()) for name, one in layers.items()}


def _pca(
    values: npt.NDArray[np.float32], rows: npt.NDArray[np.intp], components: int, name: str, reporter: Reporter
) -> Projection:
    """Principal components of some rows, in parts that fit into memory (Ross et al. 2008)."""
    from sklearn.decomposition import IncrementalPCA

    at_once = max(components, _CHUNK_BYTES // (8 * values.shape[1]))
    # None of the parts may have fewer rows than there are components.
    parts = np.array_split(rows, max(1, len(rows) // max(1, at_once)))
    pca = IncrementalPCA(n_components=components)
    reporter.begin(f"PCA of {name}", len(rows))
    for part in parts:
        pca.partial_fit(values[part].astype(np.float64))
        reporter.advance(len(part))
    reporter.end()
    arrays = {
        "mean": pca.mean_.astype("<f4"),
        "components": pca.components_.astype("<f4"),
        "explained_variance": pca.explained_variance_.astype("<f8"),
        "explained_variance_ratio": pca.explained_variance_ratio_.astype("<f8"),
    }
    return Projection(values.shape[1], arrays)
