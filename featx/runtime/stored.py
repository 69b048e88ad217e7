"""What featx keeps in JSON, declared once; everything that is read back is checked against it, and nothing else is.

The classes here only declare: a value that fits one of them is used as the plain value it is. Members that are not
declared are ignored, so that a later version's files can be read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec
from msgspec import Meta, Struct

from featx.errors import FileFormatError
from featx.runtime.text import printable

MAX_JSON_BYTES = 64 << 20
_MAX_DEPTH = 32

T = TypeVar("T")

Text = Annotated[str, Meta(max_length=65536)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Meta(ge=1, le=65536)]  # of an image, in pixels
Level = Annotated[int, Meta(ge=0, le=255)]  # of a colour
Positive = Annotated[float, Meta(gt=0, le=1e30)]
Pooling = Annotated[
    str, Meta(pattern=r"^(none|avg|max|flatten|cls|mean|cls\+mean|spp:[1-9]\d?(,[1-9]\d?){0,9})$", max_length=64)
]
ClassNames = Annotated[list[Text], Meta(min_length=2, max_length=1_000_000)]


class Preprocessing(Struct):
    """`Preprocess.values`."""

    resize: Side
    crop: Annotated[int, Meta(ge=1, le=8192)]
    interpolation: Literal["bilinear", "bicubic", "lanczos", "box", "nearest"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    squash: bool
    mirror: bool = False
    pad: tuple[Level, Level, Level] | None = None
    grey: bool = False
    views: Literal["center", "corners", "ten"] = "center"
    aggregate: Literal["mean", "max", "stack"] = "mean"


class Weights(Struct):
    """Where the weights came from."""

    name: Text
    spec: Text
    sha256: Sha256
    url: Text | None = None
    published: Text | None = None


class Layer(Struct):
    """One captured layer."""

    node: Text
    relu: Literal["after", "before", "none"] = "none"


class Versions(Struct):
    """Of what made a file."""

    torch: Text
    decoder: Text
    featx: Text = ""


class Source(Struct):
    """The images a file was made from."""

    path: Text
    kind: Literal["folder", "list", "csv", "stdin", "zip", "tar", "hdf5", "table", "remote", "video"]
    files: Any = None


class Shard(Struct):
    """Which part of a job a file is."""

    index: Annotated[int, Meta(ge=0, le=1_000_000)]
    count: Annotated[int, Meta(ge=1, le=1_000_000)]
    images: Text
    total: int = 0


class Reduced(Struct):
    """A layer that is projected."""

    values: Annotated[int, Meta(ge=1, le=1 << 31)]
    sha256: Sha256


class Reduction(Struct):
    """How layers were made smaller; of a head without `layers`, with the members of `Reduced`."""

    method: Literal["pca", "srp"]
    components: Annotated[int, Meta(ge=1, le=999_999)]
    seed: Annotated[int, Meta(ge=0, le=999_999_999)]
    sample: Annotated[int, Meta(ge=0)]
    layers: dict[str, Reduced] = {}


class Provenance(Struct):
    """/provenance of a features file."""

    backbone: Text
    weights: Weights
    preprocess: Preprocessing
    exif: bool
    pooling: Pooling
    layers: dict[str, Layer]
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    dtype: Literal["float32", "float16", "float64"]
    decode: Literal["cpu", "fast", "gpu", "auto"]
    batch_size: Annotated[int, Meta(ge=1, le=4096)]
    request: dict[str, Any]
    command: Text
    source: Source
    images: Text
    versions: Versions
    hardware: Text
    device: Text = "cpu"
    plain: bool = False
    code: Text | None = None
    reduction: Reduction | None = None


class HeadRecipe(Struct):
    """What makes the features a head takes."""

    backbone: Text
    weights: Weights
    preprocess: Preprocessing
    exif: bool
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    batch_size: Annotated[int, Meta(ge=1, le=4096)]
    node: Text
    pooling: Pooling
    command: Text
    dtype: Literal["float32", "float16"] = "float32"
    code: Text | None = None
    reduction: Reduction | None = None


class Calibration(Struct, forbid_unknown_fields=True):
    """From an SVM's scores to probabilities."""

    kind: Literal["temperature", "platt"]
    slopes: list[float]
    offsets: list[float]


class Head(Struct):
    """The metadata of a head."""

    kind: Literal["svm", "softmax"]
    classes: ClassNames
    normalize: Literal["none", "l2"]
    layer: Text
    recipe: HeadRecipe
    report: dict[str, Any]
    calibration: Calibration | None = None
    multilabel: bool = False
    sha256: Text = ""


class RunWeights(Struct):
    """The weights a run started from."""

    spec: Text
    sha256: Sha256 | None
    published: Text | None = None


class RunPlan(Struct):
    """Everything the result of a run depends on."""

    request: dict[str, Any] = {}
    images: Text = ""
    weights: RunWeights | None = None
    lr: Text = ""
    source: Text = ""
    files: dict[str, Text] | None = None


class Run(Struct):
    """config.json of a run."""

    backbone: Text
    classes: Annotated[list[Text], Meta(min_length=1, max_length=1_000_000)]  # one number, or two classes and more
    preprocess: Preprocessing
    plan: RunPlan
    task: Literal["classes", "labels", "values"] = "classes"


class ProbeFit(Struct, array_like=True):
    """A line of a probe's journal."""

    layer: Text
    head: Literal["svm", "softmax", "mean", "knn", "ridge"]
    repeat: Annotated[int, Meta(ge=0)]
    accuracy: Annotated[float, Meta(ge=0, le=1)]
    c: Positive
    unproven: Annotated[int, Meta(ge=0)]
    fewer: Annotated[int, Meta(ge=0)] = 0


def parse_json(content: bytes | str, where: str) -> Any:
    """The value in some JSON.

    Raises:
        FileFormatError: it is none, or too large or too deeply nested.
    """
    if len(content) > MAX_JSON_BYTES:
        raise FileFormatError(f"{where} has {len(content):,} bytes of JSON; at most {MAX_JSON_BYTES:,} are read")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where} is not JSON: {printable(' '.join(str(error).split()))}") from error
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise FileFormatError(f"{where} is nested more than {_MAX_DEPTH} deep")
        if isinstance(item, str) and not _can_be_written(item):
            raise FileFormatError(f"{where} holds text that no file can: {printable(item[:20])}")
        inside = [*item, *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else []
        waiting.extend((one, depth + 1) for one in inside)
    return value


def _can_be_written(text: str) -> bool:
    """Whether it is Unicode, or stands for bytes of a file's name that are not UTF-8."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def convert(value: Any, kind: type[T], where: str) -> T:
    """A value as a declared type: a class of this module, or a dataclass.

    Raises:
        FileFormatError: it is not as declared; the text has the place in the JSON.
    """
    try:
        return msgspec.convert(value, kind, strict=True, dec_hook=_decode)
    except (msgspec.ValidationError, RecursionError, OverflowError, ValueError, TypeError) as error:
        raise FileFormatError(f"{where}: {printable(str(error))}") from error


def build(kind: type[T], value: Any, where: str, **given: Any) -> T:
    """A dataclass from the members of a JSON object; members it does not have are ignored.

    Args:
        given: fields that are not taken from the JSON.

    Raises:
        FileFormatError: a member is missing or not as the dataclass declares.
    """
    if not isinstance(value, dict):
        raise FileFormatError(f"{where}: Expected `object`, got {type(value).__name__}")
    hints = get_type_hints(kind)
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]  # it is a dataclass
        if spec.name in given:
            continue
        if spec.name in value:
            given[spec.name] = convert(value[spec.name], hints[spec.name], f"{where}, {spec.name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise FileFormatError(f"{where}: `{spec.name}` is missing")
    return kind(**given)


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"a {type(value).__name__} where {kind.__name__} belongs")


def read_json_file(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileFormatError: there is none, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_json(content, str(path))
