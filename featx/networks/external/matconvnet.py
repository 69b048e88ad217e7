"""Weights from MatConvNet: imagenet-caffe-alex.mat, imagenet-vgg-verydeep-16.mat and their like (SimpleNN).

A .mat file of MATLAB 5 whose `layers` are structs with a name and `weights` {filters, biases}, or `filters` and
`biases` as before 2015. Filters are (height, width, channels in, channels out); fully connected layers are
convolutions of the size of their input. Images are red, green, blue from 0 to 255, less `averageImage`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.errors import WeightsMismatch

SUFFIX = ".mat"
_COLOURS = 3
_MAT_ERRORS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, MemoryError, OverflowError,
)  # fmt: skip


def is_matconvnet(path: Path | None) -> bool:
    """Whether a file of weights is MatConvNet's, by its name."""
    return path is not None and path.suffix.lower() == SUFFIX


def read_matconvnet(path: Path) -> dict[str, list[Tensor]]:
    """layer -> its weights (out, in, height, width) and its bias (out,).

    Raises:
        WeightsMismatch: it cannot be read, or holds no layers of a SimpleNN.
    """
    found = _read(path, "layers").get("layers")
    if found is None:
        raise WeightsMismatch(f"{path} holds no `layers`; is it a network of MatConvNet?")
    layers: dict[str, list[Tensor]] = {}
    try:
        for entry in np.ravel(found):
            layer = np.ravel(entry)[0]
            fields = layer._fieldnames
            if "weights" in fields:
                arrays = [np.asarray(one) for one in np.ravel(layer.weights)]
            elif "filters" in fields:
                arrays = [np.asarray(layer.filters), np.asarray(layer.biases)]
            else:
                continue
            if arrays and arrays[0].size:
                layers[str(np.ravel(layer.name)[0])] = [_filters(arrays[0]), *map(_bias, arrays[1:2])]
    except _MAT_ERRORS as error:
        raise WeightsMismatch(
            f"{path}: its `layers` are not those of a SimpleNN of MatConvNet ({type(error).__name__}: {error}); a "
            f"DagNN has to be converted first"
        ) from error
    if not layers:
        raise WeightsMismatch(f"{path} holds no layer with weights")
    return layers


def matconvnet_preprocessing(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing of a network as the file wants it: pixels of 0 to 255 less the colour of its mean image.

    Raises:
        WeightsMismatch: it cannot be read, or holds no mean image.
    """
    found = _read(path, "meta", "normalization")
    try:
        meta = np.ravel(found["meta"])[0].normalization if "meta" in found else found["normalization"]
        image = np.asarray(np.ravel(meta)[0].averageImage, np.float64)
        colour = image.reshape(-1, _COLOURS).mean(0) if image.ndim == 3 else image.reshape(_COLOURS)
    except _MAT_ERRORS as error:
        raise WeightsMismatch(f"{path} holds no meta.normalization.averageImage") from error
    return {**values, "mean": [float(level) / 255 for level in colour], "std": [1 / 255] * _COLOURS}


def _read(path: Path, *names: str) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found: dict[str, Any] = loadmat(path, struct_as_record=False, squeeze_me=False, variable_names=names)
        return found
    except (*_MAT_ERRORS, MatReadError) as error:
        reason = " ".join(str(error).split())
        raise WeightsMismatch(f"{path} cannot be read as a MATLAB 5 file: {reason}") from error


def _filters(array: npt.NDArray[Any]) -> Tensor:
    if array.ndim > 4 or array.dtype.kind != "f":
        raise ValueError(f"filters of type {array.dtype} and shape {array.shape}")
    whole = array.reshape(array.shape + (1,) * (4 - array.ndim))  # MATLAB drops sizes of 1 at the end
    return torch.from_numpy(np.ascontiguousarray(whole.transpose(3, 2, 0, 1), np.float32))


def _bias(array: npt.NDArray[Any]) -> Tensor:
    if array.dtype.kind != "f":
        raise ValueError(f"biases of type {array.dtype}")
    return torch.from_numpy(array.astype(np.float32).ravel())
