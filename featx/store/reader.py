"""Read a features file: arrays mapped without copying, opened lazily, safe to hand to other processes."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from featx.errors import FileFormatError, LabelError, UnknownLayer
from featx.runtime.files import identity, is_hdf5, refuse_special_file, unchanged
from featx.runtime.text import printable
from featx.status import Decoder, Failure, Status
from featx.store.checksums import GROUP
from featx.store.extents import READ_ERRORS, Extent, read_extents, read_provenance, schema_of
from featx.store.schema import LayerSpec, partial_path

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset


class Features(Mapping[str, npt.NDArray[Any]]):
    """A features file: layer name -> array (N, ...), and what is known about the N images.

    The arrays are read-only maps of the file, read when they are used; another process opens the file for itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise FileFormatError(f"{path} is a folder; featx extract {path} -o NAME.h5 makes a file of features")
        refuse_special_file(path)
        self._identity = identity(path)  # a name may be given to another file while this one is in use
        try:
            with h5py.File(path, "r", locking=False) as file:
                self._extents = read_extents(file, str(path))
                self.schema = schema_of(file)
                self.complete = bool(file.attrs.get("complete", 0))
                self.fingerprint: str = file.attrs["fingerprint"].decode()
                self.provenance = read_provenance(file, str(path))
                found = {
                    name.removeprefix("features/"): _layer_spec(file[name], extent)
                    for name, extent in self._extents.items()
                    if name.startswith("features/")
                }
                if found.keys() != self.provenance["layers"].keys():
                    raise FileFormatError(
                        f"{path} is damaged: it holds the layers {', '.join(found)}, and its provenance names "
                        f"{', '.join(self.provenance['layers'])}"
                    )
                # HDF5 lists them by name; the provenance has them in the order they were asked for.
                asked = [name for name in self.provenance["layers"] if name in found]
                self.layers: dict[str, LayerSpec] = {
                    name: found[name] for name in [*asked, *sorted(found.keys() - set(asked))]
                }
            self._refuse_wrong_indices()
        except FileNotFoundError as error:
            hint = ""
            if partial_path(path).exists():
                hint = f"; {partial_path(path).name} is there: run the same extract command again to finish it"
            raise FileFormatError(f"no file {path}{hint}") from error
        except READ_ERRORS as error:
            reason = " ".join(str(error).split())
            if not is_hdf5(path):
                reason = "it is not an HDF5 file. featx extract IMAGES -o NAME.h5 makes one"
            raise FileFormatError(f"{path} cannot be read as a features file: {reason}") from error

    def _refuse_wrong_indices(self) -> None:
        for name, index, names in (
            ("label", self.labels, self.classes),
            ("split", self.split_of, self.splits),
        ):
            if len(index) and not (index.min() >= -1 and index.max() < len(names)):
                raise ValueError(f"/images/{name} points outside of its {len(names)} names")
        if len(self.status) and self.status.max() > max(Status):
            raise ValueError(f"/images/status holds {self.status.max()}, which means nothing")
        if len(self.decoder) and self.decoder.max() > max(Decoder):
            raise ValueError(f"/images/decoder holds {self.decoder.max()}, which means nothing")

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.path, self.digest if self.complete else None))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {self._extents['features/' + name].shape}" for name in self.layers)
        return f"<Features {self.path}: {len(self.paths)} images; {shapes}>"

    def __len__(self) -> int:
        """The number of images N."""
        return self._extents["images/path"].shape[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __getitem__(self, layer: str) -> npt.NDArray[Any]:
        """(N, ...) of one layer, mapped; UnknownLayer if the file does not hold it."""
        return self._map(f"features/{self._known(layer)}")

    def _known(self, layer: str) -> str:
        if layer not in self.layers:
            raise UnknownLayer(f"{self.path} has no layer {layer!r}; it holds {', '.join(self.layers)}")
        return layer

    def only_layer(self, layer: str | None = None) -> str:
        """`layer` if the file holds it; without one, the only layer there is."""
        if layer is not None:
            return self._known(layer)
        if len(self.layers) != 1:
            raise UnknownLayer(f"{self.path} holds {', '.join(self.layers)}; choose one with -l")
        return next(iter(self.layers))

    def _map(self, name: str) -> npt.NDArray[Any]:
        extent = self._extents[name]
        if 0 in extent.shape:
            return np.empty(extent.shape, extent.dtype)
        with unchanged(self.path, self._identity, is_written=not self.complete):
            if extent.offset is None:  # repacked by another tool, compressed perhaps: to be read, not mapped
                with h5py.File(self.path, "r", locking=False) as file:
                    return np.asarray(file[name])
            try:
                return np.memmap(self.path, extent.dtype, "r", extent.offset, extent.shape)
            except (ValueError, OSError) as error:
                raise FileFormatError(f"{self.path} is shorter than it should be: /{name} is cut off") from error

    @cached_property
    def raw_paths(self) -> list[bytes]:
        """The N paths as bytes, as the file system has them."""
        return [bytes(path) for path in self._map("images/path")]

    @cached_property
    def paths(self) -> list[str]:
        """The N paths, relative to the source, as Python writes file names (os.fsdecode)."""
        return [os.fsdecode(path) for path in self.raw_paths]

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """(N,) index into `classes`, -1 for none."""
        return np.array(self._map("images/label"))

    @cached_property
    def classes(self) -> list[str]:
        """The K class names."""
        return _texts(self._map("classes"))

    @property
    def source_kind(self) -> str:
        """Of the images it was made from: "folder", "list", "csv", "stdin", "zip", "tar" or "hdf5"."""
        return str(self.provenance["source"]["kind"])

    @cached_property
    def splits(self) -> list[str]:
        """The names of the splits, such as train and test; empty if there are none."""
        return _texts(self._map("splits"))

    @cached_property
    def split_of(self) -> npt.NDArray[np.int32]:
        """(N,) index into `splits`, -1 for none."""
        return np.array(self._map("images/split"))

    @cached_property
    def groups(self) -> list[str]:
        """N names of what images belong to, as a patient, empty for none; [] if no image has one."""
        return _texts(self._map(GROUP)) if GROUP in self.datasets else []

    @cached_property
    def status(self) -> npt.NDArray[np.uint8]:
        """(N,) 0 pending, 1 done, 2.. a kind of failure."""
        return np.array(self._map("images/status"))

    @cached_property
    def sha256(self) -> npt.NDArray[np.uint8]:
        """(N, 32) hash of each image file's bytes."""
        return np.array(self._map("images/sha256"))

    @cached_property
    def orientation(self) -> npt.NDArray[np.uint8]:
        """(N,) EXIF orientation of each image, 1 = upright."""
        return np.array(self._map("images/orientation"))

    @cached_property
    def decoder(self) -> npt.NDArray[np.uint8]:
        """(N,) what made the pixels of each image: 0 Pillow, 1 nvJPEG, 2 libjpeg-turbo and PyTorch."""
        return np.array(self._map("images/decoder"))

    @property
    def datasets(self) -> Collection[str]:
        """The names of what the file holds, without the first slash."""
        return self._extents.keys()

    @property
    def projections(self) -> dict[str, npt.NDArray[Any]]:
        """What reduced layers were projected with, by the names of the datasets; empty if none was."""
        return {name: np.array(self.array(name)) for name in self.datasets if name.startswith("reduction/")}

    def array(self, name: str) -> npt.NDArray[Any]:
        """Any dataset of the file, by its HDF5 name without the first slash."""
        return self._map(name)

    def checksums(self, name: str) -> npt.NDArray[np.uint64] | None:
        """(N,) stored checksums: of a layer's rows by its name, or of "images"; None in files of schema 1."""
        key = "checksums/images" if name == "images" else f"checksums/features/{name}"
        return np.array(self._map(key)) if key in self._extents else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what the rows were made from, hexadecimal: the plan, and the bytes of every image."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(self.status.tobytes())
        digest.update(self.sha256.tobytes())
        return digest.hexdigest()

    def count(self, status: int) -> int:
        """How many images have this status."""
        return int((self.status == status).sum())

    def failures(self) -> list[Failure]:
        """The images that failed, in order."""
        rows = np.flatnonzero(self.status > Status.DONE)
        reasons = self._map("images/reason")
        return [
            Failure(int(row), self.paths[row], int(self.status[row]), reasons[row].decode(errors="replace"))
            for row in rows
        ]

    def damaged_row(self, layer: str, row: int) -> FileFormatError:
        """What to say of a row that holds NaN although the file calls it done."""
        return FileFormatError(
            f"{self.path}: {layer} of {printable(self.paths[row])} (row {row}) holds NaN or infinite values although "
            f"the image counts as done; run featx verify {self.path}"
        )

    def usable(self, split: str | None = None) -> npt.NDArray[np.intp]:
        """The rows that are done and labelled, in order.

        Raises:
            LabelError: the file has no such split.
        """
        usable = (self.status == Status.DONE) & (self.labels >= 0)
        if split is not None:
            if split not in self.splits:
                have = ", ".join(self.splits) or "none"
                raise LabelError(f"{self.path} has no split {split!r}; its splits: {have}")
            usable &= self.split_of == self.splits.index(split)
        return np.flatnonzero(usable)

    def xy(
        self, layer: str | None = None, split: str | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """X (n, D) and y (n,) of the labelled, successful rows; maps are flattened. Not copied if all rows are."""
        rows = self.usable(split)
        name = self.only_layer(layer)
        values = self._rows(name, rows) if len(rows) < len(self) else flat_rows(self[name])
        return values, self.labels[rows]

    def _rows(self, layer: str, rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """(n, D) of some rows of a layer, a copy."""
        found: npt.NDArray[Any] = flat_rows(self[layer])[rows]
        return found

    def dataset(self, layer: str | None = None, split: str | None = None) -> Dataset[tuple[Tensor, int]]:
        """A torch Dataset of (features, label) over the labelled, successful rows."""
        from featx.store.torch_dataset import FeatureDataset

        return FeatureDataset(self, self.only_layer(layer), self.usable(split))


def flat_rows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(n, D) of rows (n, ...), also of none."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _layer_spec(dataset: h5py.Dataset, extent: Extent) -> LayerSpec:
    text = {key: dataset.attrs[key].decode() for key in ("node", "relu", "pooling")}
    return LayerSpec(dataset.name.removeprefix("/features/"), **text, shape=extent.shape[1:], dtype=extent.dtype.name)


def _texts(array: npt.NDArray[Any]) -> list[str]:
    return [value.decode("utf-8", errors="surrogateescape") for value in array]


def _reopened(path: Path, digest: str | None) -> Features:
    """A file that was pickled; FileFormatError if its name is another one's now."""
    found = Features(path)
    if digest not in (None, found.digest):
        raise FileFormatError(f"{path} was replaced or changed since it was pickled; open it again")
    return found
