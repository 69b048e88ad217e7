"""Weights from Caffe: BVLC's AlexNet and CaffeNet, VGG as its authors published it.

A .caffemodel is a NetParameter of Caffe's `caffe.proto` in protobuf's wire format, of which only names and blobs are
read. Caffe's networks take their colours as blue, green, red; the input channels of the first convolution are
reversed, so that the network takes red, green, blue as every other here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featx.errors import WeightsMismatch
from featx.networks.registry import literature_layers
from featx.runtime.text import printable

SUFFIX = ".caffemodel"
# The mean colour of ImageNet, of pixels from 0 to 255, that VGG's networks were trained with (Simonyan & Zisserman).
MEAN, STD = [123.68 / 255, 116.779 / 255, 103.939 / 255], [1 / 255] * 3
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
# Field numbers of caffe.proto: of NetParameter, and of LayerParameter and its older form.
_LAYER, _OLD_LAYER = 100, 2
_NAME, _BLOBS, _OLD_NAME, _OLD_BLOBS = 1, 7, 4, 6
_SHAPE, _DATA, _DIM, _OLD_DIMS = 7, 5, 1, (1, 2, 3, 4)
_COLOURS = 3
Blobs = list[Tensor]


def is_caffemodel(path: Path | None) -> bool:
    """Whether a file of weights is Caffe's, by its name."""
    return path is not None and path.suffix.lower() == SUFFIX


def read_caffemodel(path: Path) -> dict[str, Blobs]:
    """layer -> its tensors, of the layers that have some.

    Raises:
        WeightsMismatch: the file is damaged, or no .caffemodel.
    """
    try:
        content = memoryview(path.read_bytes())
        found: dict[str, Blobs] = {}
        for number, kind, value in _fields(content):
            if number in (_LAYER, _OLD_LAYER) and kind == _BYTES:
                name_field, blob_field = (_NAME, _BLOBS) if number == _LAYER else (_OLD_NAME, _OLD_BLOBS)
                name, blobs = _layer(value, name_field, blob_field)
                if blobs:
                    found[name] = blobs
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise WeightsMismatch(f"{path} cannot be read as a .caffemodel: {error}") from error
    if not found:
        raise WeightsMismatch(f"{path} holds no layer with weights; is it a .caffemodel?")
    return found


def state_by_layers(
    network: nn.Module, content: Mapping[str, Blobs], where: str, *, reversed_colours: bool
) -> dict[str, Tensor]:
    """A network's tensors by name, from layers of the same literature names.

    Args:
        reversed_colours: the first convolution takes blue, green, red.

    Raises:
        WeightsMismatch: the network's layers have no such names; a layer is missing or has another shape.
    """
    expected = network.state_dict()
    found: dict[str, Tensor] = {}
    first = True
    for layer in literature_layers(network):
        module = next((one for one in layer.modules if f"{one}.weight" in expected), None)
        if module is None:
            continue
        if layer.name not in content:
            held = ", ".join(printable(name) for name in list(content)[:12])
            raise WeightsMismatch(f"{where} has no layer {layer.name}; it has {held}")
        for kind, blob in zip(("weight", "bias"), content[layer.name], strict=False):
            name = f"{module}.{kind}"
            if name not in expected:
                raise WeightsMismatch(f"{where}: {layer.name} has a {kind}, which the network lacks")
            shape = tuple(expected[name].shape)
            if blob.numel() != math.prod(shape) or (blob.ndim == len(shape) and tuple(blob.shape) != shape):
                raise WeightsMismatch(f"{where}: {layer.name} is {tuple(blob.shape)}, the network needs {shape}")
            values = blob.reshape(shape)
            if reversed_colours and first and kind == "weight" and len(shape) == 4 and shape[1] == _COLOURS:
                values = values.flip(1)
            found[name] = values.contiguous()
        first = False
    if not found:
        raise WeightsMismatch(f"{where}: these weights are for AlexNet, VGG and networks with layers named so")
    return found


def caffe_preprocessing(values: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing of a network as Caffe's weights want it: pixels of 0 to 255 less a mean colour."""
    if list(values["std"]) == STD:  # it is one of those already
        return dict(values)
    return {**values, "mean": list(MEAN), "std": list(STD)}


def _layer(content: memoryview, name_field: int, blob_field: int) -> tuple[str, Blobs]:
    name, blobs = "", []
    for number, kind, value in _fields(content):
        if number == name_field and kind == _BYTES:
            name = bytes(value).decode()
        elif number == blob_field and kind == _BYTES:
            blobs.append(_blob(value))
    return name, blobs


def _blob(content: memoryview) -> Tensor:
    dims: list[int] = []
    old: dict[int, int] = {}
    packed: list[memoryview] = []
    for number, kind, value in _fields(content):
        if number == _SHAPE and kind == _BYTES:
            for inner, inner_kind, dim in _fields(value):
                if inner == _DIM:
                    dims += list(_varints(dim)) if inner_kind == _BYTES else [int(dim)]
        elif number in _OLD_DIMS and kind == _VARINT:
            old[number] = int(value)
        elif number == _DATA and kind in (_BYTES, _FLOAT):
            packed.append(value)
    data = np.frombuffer(b"".join(packed), "<f4")
    shape = dims or [old.get(number, 1) for number in _OLD_DIMS]
    if math.prod(shape) != len(data):
        raise ValueError(f"a blob of shape {tuple(shape)} holds {len(data)} values")
    return torch.from_numpy(data.astype(np.float32)).reshape(shape)


def _fields(content: memoryview) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of a message: a number, or the bytes of what has a length."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(content, place)
            yield number, kind, value
            continue
        if kind == _BYTES:
            size, place = _varint(content, place)
        elif kind in (_DOUBLE, _FLOAT):
            size = 8 if kind == _DOUBLE else 4
        else:
            raise ValueError(f"there is wire type {kind} at byte {place}")
        if place + size > len(content):
            raise ValueError("it is cut off")
        yield number, kind, content[place : place + size]
        place += size


def _varints(content: memoryview) -> Iterator[int]:
    place = 0
    while place < len(content):
        value, place = _varint(content, place)
        yield value


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise ValueError("it is cut off")
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"there is a number without an end at byte {place}")
