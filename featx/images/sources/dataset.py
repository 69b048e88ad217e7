"""Images in an HDF5 dataset, as stimuli are kept: FILE.h5:/NAME."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from featx.errors import SourceError
from featx.images.bad_image import MAX_FILE_BYTES, BadImage
from featx.images.processes.turns import Need, no_turns
from featx.runtime.files import is_hdf5
from featx.status import Status

_DATASET = re.compile(r"(?P<file>.+\.(?:h5|hdf5)):/*(?P<name>.+)", re.IGNORECASE)
_MISSING = b"missing"


class DatasetRows:
    """Images of an HDF5 dataset, FILE.h5:/NAME, uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3): each as a PNM file."""

    def __init__(self, root: Path) -> None:
        self.file, self.name = split_dataset(root)

    @cached_property
    def _dataset(self) -> Any:
        import h5py

        try:
            found = h5py.File(self.file, "r", locking=False).get(self.name)
        except OSError as error:
            raise SourceError(f"{self.file} cannot be read as an HDF5 file: {error}") from error
        if not isinstance(found, h5py.Dataset):
            raise SourceError(f"{self.file} has no dataset {self.name}")
        shape = found.shape
        if found.dtype != "uint8" or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise SourceError(
                f"{self.file}:/{self.name} is {found.dtype} {shape}; images are uint8 (N, H, W), (N, H, W, 1) or "
                f"(N, H, W, 3)"
            )
        return found

    def __len__(self) -> int:
        return int(self._dataset.shape[0])

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        rows = self._dataset
        try:
            row = int(path)
            if not 0 <= row < len(rows):
                raise ValueError
        except ValueError:
            raise BadImage(Status.MISSING, "no such row of the dataset") from None
        size = rows.nbytes // len(rows)
        if size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"the row has {size} bytes, more than {MAX_FILE_BYTES}")
        need(size)
        try:
            pixels = rows[row]
        except OSError as error:
            raise BadImage(Status.DAMAGED, str(error).splitlines()[0]) from None
        kind = b"P6" if pixels.ndim == 3 and pixels.shape[2] == 3 else b"P5"
        content: bytes = pixels.tobytes()
        return b"%s\n%d %d\n255\n" % (kind, pixels.shape[1], pixels.shape[0]) + content

    def state(self, path: bytes) -> bytes:
        try:
            found = os.stat(self.file)
        except OSError:
            return _MISSING
        return b"%d,%d" % (found.st_size, found.st_mtime_ns)

    def alike(self, path: bytes) -> bytes:
        return b"same size"

    def close(self) -> None:
        if "_dataset" in self.__dict__:
            self.__dict__.pop("_dataset").file.close()


def is_dataset(source: Path) -> bool:
    """Whether a source is FILE.h5:/NAME."""
    found = _DATASET.fullmatch(str(source))
    return found is not None and not source.exists()


def split_dataset(source: Path) -> tuple[Path, str]:
    """The file and the name of FILE.h5:/NAME."""
    found = _DATASET.fullmatch(str(source))
    if found is None:
        raise SourceError(f"{source} names no dataset; write FILE.h5:/NAME")
    file = Path(found["file"])
    if not file.is_file():
        raise SourceError(f"no file {file}")
    if not is_hdf5(file):
        raise SourceError(f"{file} is not an HDF5 file")
    return file, found["name"]
