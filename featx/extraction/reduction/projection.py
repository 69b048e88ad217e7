"""What layers are projected with before they are written: principal components, or a sparse random matrix."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.errors import FileFormatError, UsageError
from featx.heads.linear_head import LinearHead
from featx.runtime.files import is_hdf5
from featx.store.reader import Features
from featx.store.schema import LayerSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PCA, SRP = "pca", "srp"
PREFIX = "reduction/"  # of its arrays in a features file: reduction/LAYER/NAME
_SPEC = re.compile(r"(pca|srp):([1-9]\d{0,5})(?::(\d{1,9}))?")
_KINDS = {"mean": "f", "components": "f", "explained_variance": "f", "explained_variance_ratio": "f",
          "data": "f", "indices": "i", "indptr": "i"}  # fmt: skip
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Projection:
    """Of one layer: D values become N.

    Attributes:
        values: D.
        arrays: of a PCA "components" (N, D) and "mean" (D,) in float32, "explained_variance" and
            "explained_variance_ratio" (N,) in float64; of a sparse random projection its matrix (N, D) in compressed
            sparse rows: "data" in float32, "indices" and "indptr" in int32.
    """

    values: int
    arrays: Arrays

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays, hexadecimal."""
        found = hashlib.sha256()
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            found.update(array.tobytes())
        return found.hexdigest()

    @property
    def matrix(self) -> npt.NDArray[np.float32]:
        """(N, D)."""
        if "components" in self.arrays:
            return np.asarray(self.arrays["components"], np.float32)
        from scipy.sparse import csr_matrix

        parts = self.arrays["data"], self.arrays["indices"], self.arrays["indptr"]
        dense: npt.NDArray[np.float32] = csr_matrix(parts, (len(parts[2]) - 1, self.values)).toarray()
        return dense

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """(D,) what is subtracted first."""
        return np.asarray(self.arrays.get("mean", np.zeros(self.values)), np.float32)

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """(B, ...) float32 on the device -> (B, N)."""
        import torch

        matrix, mean = torch.tensor(self.matrix, device=device), torch.tensor(self.mean, device=device)
        return lambda values: torch.nn.functional.linear(values.flatten(1) - mean, matrix)

    def exactly(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(n, ...) -> (n, N), in float64."""
        rows = values.reshape(len(values), -1).astype(np.float64) - self.mean
        found: npt.NDArray[np.float64] = rows @ self.matrix.astype(np.float64).T
        return found


@dataclass(frozen=True)
class Reduction:
    """How the layers of an extraction become smaller.

    Attributes:
        method: "pca" or "srp".
        components: N, of every layer.
        seed: of the sample that a PCA is fitted on, or of the random matrix.
        sample: how many images a PCA was fitted on.
        layers: name -> its projection; empty until a PCA is fitted.
        fitted_on: of one that a file keeps, what made the features that it was fitted on.
    """

    method: str
    components: int
    seed: int = 0
    sample: int = 0
    layers: Mapping[str, Projection] = field(default_factory=dict)
    fitted_on: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def describe(self) -> dict[str, Any]:
        """As plain values, for a file's provenance."""
        layers = {name: {"values": one.values, "sha256": one.digest} for name, one in self.layers.items()}
        return {**self._described, "layers": layers}

    def describe_layer(self, layer: str) -> dict[str, Any]:
        """As plain values, for the head on a layer."""
        return {**self._described, "values": self.layers[layer].values, "sha256": self.layers[layer].digest}

    @property
    def _described(self) -> dict[str, Any]:
        return {"method": self.method, "components": self.components, "seed": self.seed, "sample": self.sample}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a features file keeps, by its names there."""
        return {f"{PREFIX}{layer}/{name}": a for layer, one in self.layers.items() for name, a in one.arrays.items()}

    def refuse_other_features(self, recipe: Mapping[str, Any]) -> None:
        """Raise UsageError if the projection of a file was fitted on features that were made in another way.

        Args:
            recipe: as `Recipe.to_dict` gives it, with the hash of the weights.
        """
        for key in ("backbone", "weights", "preprocess", "pooling", "exif") if self.fitted_on else ():
            mine, theirs = recipe[key], self.fitted_on[key]
            if key == "weights":
                mine, theirs = mine["sha256"], theirs["sha256"]
            # Of a vector nothing is pooled; whether a map is shows in its number of values.
            if mine != theirs and not (key == "pooling" and "none" in (mine, theirs)):
                raise UsageError(
                    f"--reduce {self.fitted_on['path']}: its projection was fitted on features made with another "
                    f"{key}, so what it gives would mean nothing; featx inspect shows how they were made"
                )

    def smaller(self, spec: LayerSpec) -> tuple[int, ...]:
        """The shape of a layer's rows.

        Raises:
            UsageError: it would not be smaller, or the projection is of another number of values.
        """
        values = int(np.prod(spec.shape))
        if self.components >= values:
            raise UsageError(
                f"--reduce {self.method}:{self.components} makes nothing smaller: {spec.name} has {values} values"
            )
        if self.layers and spec.name not in self.layers:
            raise UsageError(f"--reduce: the file has a projection of {', '.join(self.layers)}, not of {spec.name}")
        if self.layers and self.layers[spec.name].values != values:
            raise UsageError(
                f"--reduce: the projection of {spec.name} takes {self.layers[spec.name].values} values; here it has "
                f"{values}"
            )
        return (self.components,)


def parse_reduction(text: str) -> Reduction:
    """What `--reduce TEXT` means, without its arrays where they depend on the images or on the network.

    Raises:
        UsageError: neither pca:N, nor srp:N, nor a file that keeps a projection.
    """
    found = _SPEC.fullmatch(text)
    if found:
        return Reduction(found[1], int(found[2]), int(found[3] or 0))
    if not Path(text).is_file():
        raise UsageError(
            f"--reduce is {text!r}; it can be pca:N, srp:N, or a features file or head that was made with --reduce"
        )
    return reduction_of_file(text)


def reduction_of_file(path: str | os.PathLike[str]) -> Reduction:
    """The projection that a features file or a head keeps.

    Raises:
        UsageError: it keeps none.
        FileFormatError: it is neither.
    """
    if is_hdf5(Path(path)):
        found = reduction_of(Features(Path(path)))
    else:
        head = LinearHead.load(path)
        found = None if not head.projection else from_described(head.recipe["reduction"], head.layer, head.projection)
    if found is None:
        raise UsageError(f"--reduce: {path} was made without --reduce and keeps no projection")
    made = Features(Path(path)).provenance if is_hdf5(Path(path)) else LinearHead.load(path).recipe
    return replace(found, fitted_on={**made, "path": str(path)})


def reduction_of(features: Features) -> Reduction | None:
    """The projection by which the rows of a features file were made; None if they are as the network gave them.

    Raises:
        FileFormatError: it is damaged.
    """
    made = features.provenance.get("reduction")
    if not made:
        return None
    layers = {}
    for layer, said in made["layers"].items():
        names = [name for name in _KINDS if f"{PREFIX}{layer}/{name}" in features.datasets]
        arrays = {name: np.array(features.array(f"{PREFIX}{layer}/{name}")) for name in names}
        layers[layer] = _checked(Projection(said["values"], arrays), said, made["components"], str(features.path))
    return Reduction(made["method"], made["components"], made["seed"], made["sample"], layers)


def from_described(described: Mapping[str, Any], layer: str, arrays: Arrays) -> Reduction:
    """Of one layer, as `Reduction.describe_layer` has described it.

    Raises:
        FileFormatError: the arrays are others.
    """
    if not {"values", "sha256"} <= described.keys():
        raise FileFormatError("the head is damaged: it does not say what its layer was projected with")
    one = _checked(Projection(described["values"], arrays), described, described["components"], "the head")
    return Reduction(
        described["method"], described["components"], described["seed"], described["sample"], {layer: one}
    )


def _checked(projection: Projection, said: Mapping[str, Any], components: int, where: str) -> Projection:
    try:
        fits = projection.digest == said["sha256"] and projection.matrix.shape == (components, projection.values)
    except (KeyError, ValueError, IndexError) as error:
        raise FileFormatError(f"{where} is damaged: its projection cannot be read: {error}") from error
    if not fits or projection.mean.shape != (projection.values,):
        raise FileFormatError(f"{where} is damaged: its projection is not the one that its provenance names")
    return projection


def kept_in(text: str | None) -> dict[str, str] | None:
    """layer -> SHA-256 of its projection, where `--reduce TEXT` names a file; else None."""
    if text is None or _SPEC.fullmatch(text):
        return None
    return {name: one.digest for name, one in parse_reduction(text).layers.items()}
