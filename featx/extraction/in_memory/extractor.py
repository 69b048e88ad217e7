"""Features of images in memory: the library's way in, and a scikit-learn transformer."""

from __future__ import annotations

import hashlib
import inspect
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin

from featx.errors import UsageError
from featx.extraction.engine import Engine
from featx.extraction.in_memory.threads import ON_ERROR, Batch, InMemory
from featx.extraction.provenance import versions
from featx.extraction.recipe import Recipe
from featx.extraction.reduction.fit import without_images
from featx.images.inputs import of_table
from featx.status import Failure, Status

_LOADING = threading.Lock()
_IMAGE_COLUMNS = ("bytes", "image", "content")  # of a batch that is a dictionary


@dataclass(frozen=True)
class FeatureSpec:
    """One layer as an Extractor gives it.

    Attributes:
        node: the module or graph node that computes it.
        relu: "after" a ReLU, "before" one, or "none".
        shape: of one image's values, after pooling.
        receptive_field, stride: (height, width) in input pixels; None where a value sees the whole image, or where
            the arithmetic does not apply.
    """

    name: str
    node: str
    relu: str
    pooling: str
    shape: tuple[int, ...]
    dtype: str
    receptive_field: tuple[int, int] | None
    stride: tuple[int, int] | None


class Extractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Layers of a pretrained network for images in memory: the same values as `featx extract`, bit for bit.

    An image is a path, the bytes of an image file, an open file, a PIL image, a NumPy array (H, W), (H, W, 3) or
    (H, W, 4) of uint8, uint16 or floats from 0 to 1, or a torch tensor (3, H, W). An image's values depend neither on
    the images beside it nor on their number.

    It can be called by several threads at once. The network is loaded at the first use, or by `load`; a `with`
    statement or `close` frees it. After a fork it must be made again.

    As a scikit-learn transformer it takes a list of images and gives their layers side by side, flattened, (N, D).

    Args:
        backbone: alexnet, vgg16, any torchvision classifier, or the folder of a fine-tuned network.
        layers: names, as a list or as text with ranges (conv1-conv5) and globs; by default fc7 of AlexNet and VGG,
            penultimate of other networks.
        weights: "default", a torchvision weights name, a file of torch.save or safetensors, or "random:SEED".
        pool, reduce, precision, dtype, device, decode, preprocess, resize, crop, dense, squash, pad_color, mean, std,
            interpolation, grey, exif, mirror, views, aggregate, batch_size: as the options of `featx extract`.
        crop_mode: as its option `--fit`: "crop", "pad" or "squash".
        workers: threads that decode and compute; by default one per core.
        on_error: "raise" an ImageError for images that cannot be used, or give "nan" for their rows.

    Example:
        >>> import featx, numpy as np
        >>> extractor = featx.Extractor("alexnet-mini", layers=["conv5", "fc7"])
        >>> features = extractor([np.zeros((80, 60, 3), np.uint8), np.ones((64, 64))])
        >>> features["fc7"].shape, features["conv5"].shape
        ((2, 384), (2, 256, 8, 8))
    """

    _loaded: tuple[dict[str, Any], InMemory] | None = None  # the parameters it was loaded with
    _failures: list[Failure]

    def __init__(
        self,
        backbone: str = "alexnet",
        layers: str | Sequence[str] | None = None,
        *,
        weights: str = "default",
        pool: str = "none",
        reduce: str | None = None,
        precision: str = "fp32",
        dtype: str = "float32",
        device: str = "auto",
        decode: str = "cpu",
        preprocess: str | None = None,
        resize: int | None = None,
        crop: int | None = None,
        dense: int | None = None,
        squash: bool = False,
        crop_mode: str | None = None,
        pad_color: str | None = None,
        mean: str | Sequence[float] | None = None,
        std: str | Sequence[float] | None = None,
        interpolation: str | None = None,
        grey: bool = False,
        exif: bool = False,
        mirror: bool = False,
        views: str = "center",
        aggregate: str = "mean",
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: str = "raise",
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.weights = weights
        self.pool = pool
        self.reduce = reduce
        self.precision = precision
        self.dtype = dtype
        self.device = device
        self.decode = decode
        self.preprocess = preprocess
        self.resize = resize
        self.crop = crop
        self.dense = dense
        self.squash = squash
        self.crop_mode = crop_mode
        self.pad_color = pad_color
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.grey = grey
        self.exif = exif
        self.mirror = mirror
        self.views = views
        self.aggregate = aggregate
        self.batch_size = batch_size
        self.workers = workers
        self.on_error = on_error

    def load(self) -> Extractor:
        """Load the network now.

        Raises:
            UsageError and its children: an unknown network, layer, weights or device, an impossible size.
            WeightsUnavailable, WeightsMismatch: as `featx extract`.
        """
        self._ready()
        return self

    def __call__(self, images: Any) -> Batch:
        """{layer: (N, ...)} of one image or of an iterable of N, row i for image i.

        A dictionary of columns, as Ray Data's `map_batches` gives it, comes back with the layers, "status" ("done" or
        a kind of failure) and "reason" in the place of its column of images: "bytes", "image" or "content", also of
        Hugging Face's {"bytes", "path"}. `Extractor` can so be the class that `map_batches` is given; with
        on_error="nan" no image ends the job.

        Raises:
            ImageError: with on_error="raise", images that cannot be used, by their place or path and the reason.
        """
        if isinstance(images, Mapping):
            return self._of_columns(images)
        found = self._ready()(images, on_error=self.on_error)
        self._failures = found.failures
        return found

    def _of_columns(self, columns: Mapping[str, Any]) -> Batch:
        name = next((name for name in _IMAGE_COLUMNS if name in columns), None)
        if name is None:
            raise UsageError(
                f"a batch with the columns {', '.join(map(str, columns))} holds no images; they are called "
                f"{', '.join(_IMAGE_COLUMNS)}"
            )
        images = [of_table(value) if isinstance(value, Mapping) else value for value in columns[name]]
        found = self._ready()(images, on_error=self.on_error)
        others = {key: value for key, value in columns.items() if key != name}
        if taken := {*others} & {*found, "status", "reason"}:
            raise UsageError(f"the batch has a column {min(taken)} already; rename it")
        status, reason = (np.full(len(images), value, object) for value in ("done", ""))
        for failure in found.failures:
            status[failure.row] = Status(failure.status).name.lower()
            reason[failure.row] = failure.reason
        table = Batch({**others, **found, "status": status, "reason": reason})
        table.failures = self._failures = found.failures
        return table

    @property
    def failures(self) -> list[Failure]:
        """The images of the last call that could not be used (each result has its own `failures`, too)."""
        return list(getattr(self, "_failures", []))

    @property
    def specs(self) -> dict[str, FeatureSpec]:
        """What each layer is."""
        recipe = self._ready().engine.recipe
        found = {}
        for layer, spec in zip(recipe.layers, recipe.layer_specs(), strict=True):
            window = recipe.backbone.window_of(layer)
            found[spec.name] = FeatureSpec(
                spec.name, spec.node, spec.relu, spec.pooling, spec.shape, spec.dtype,
                receptive_field=window[0] if window else None, stride=window[1] if window else None,
            )  # fmt: skip
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that its values depend on but the images, versions included."""
        engine = self._ready().engine
        described = {**engine.recipe.to_dict(engine.weights_sha256), "versions": versions(engine.recipe.decode)}
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @property
    def recipe(self) -> dict[str, Any]:
        """All that its values depend on but images and versions, as plain values."""
        engine = self._ready().engine
        return engine.recipe.to_dict(engine.weights_sha256)

    def fit(self, X: Any = None, y: Any = None) -> Extractor:
        """Load the network; nothing is learned from X."""
        return self.load()

    def transform(self, X: Any) -> npt.NDArray[Any]:
        """(N, D) of N images: their layers side by side, flattened."""
        return _side_by_side(self(X))

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """D names: fc7_0, fc7_1, ...."""
        outputs = self._ready().engine.outputs
        names = [f"{name}_{i}" for name, (shape, _) in outputs.items() for i in range(int(np.prod(shape)))]
        return np.asarray(names, dtype=object)

    def close(self) -> None:
        """End its threads and free the network; the next use loads it again."""
        with _LOADING:
            if self._loaded is not None:
                self._loaded[1].close()
            self._loaded = None

    def __enter__(self) -> Extractor:
        return self.load()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """The parameters: whoever unpickles it loads the network again."""
        return self._parameters()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.no_validation = False, True
        tags.input_tags.two_d_array = False
        return tags

    def _parameters(self) -> dict[str, Any]:
        """As `get_params`, also of a class made of this one whose constructor hides them, as Ray makes it."""
        names = [name for name in inspect.signature(Extractor.__init__).parameters if name != "self"]
        return {name: getattr(self, name) for name in names}

    def _ready(self) -> InMemory:
        """The network at work; loaded again where a parameter was changed."""
        parameters = self._parameters()
        with _LOADING:
            if self._loaded is None or self._loaded[0] != parameters:
                if self._loaded is not None:
                    self._loaded[1].close()
                self._loaded = parameters, self._load(dict(parameters))
            return self._loaded[1]

    @staticmethod
    def _load(parameters: dict[str, Any]) -> InMemory:
        workers, on_error, layers = (parameters.pop(name) for name in ("workers", "on_error", "layers"))
        if on_error not in ON_ERROR:
            raise UsageError(f"on_error is {on_error!r}; it can be {' or '.join(map(repr, ON_ERROR))}")
        if layers is not None and not isinstance(layers, str):
            layers = ",".join(layers)
        fit = parameters.pop("crop_mode")
        recipe = Recipe.plan(**parameters, layers=layers, fit=fit)
        return InMemory(Engine(without_images(recipe)), workers=workers)


def _side_by_side(features: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """(N, D) of all layers (N, ...); not copied if there is one."""
    flat = [values.reshape(len(values), -1) for values in features.values()]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
