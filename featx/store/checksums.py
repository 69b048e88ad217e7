"""Checksums by which a features file proves itself: of every row of every layer, and of what is known of its image.

XXH3 of 64 bits: as fast as memory, and there is a library for every language. It finds damage and edits, not forgery:
who can write the rows can write their checksums.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

Checksums = npt.NDArray[np.uint64]
# What is known of an image, in the order in which its bytes are summed.
IMAGE_FIELDS = ("images/status", "images/orientation", "images/decoder", "images/sha256", "images/reason")
GROUP = "images/group"  # only in files whose images belong to groups
STATIC_FIELDS = ("images/path", "images/label", "images/split", "classes", "splits")


def checksums_of_rows(rows: npt.NDArray[Any]) -> Checksums:
    """(n,) of rows (n, ...), in the type they have in the file."""
    plain = np.ascontiguousarray(rows).reshape(len(rows), math.prod(rows.shape[1:]))
    found: Checksums = np.fromiter((xxhash.xxh3_64_intdigest(row.data) for row in plain), np.uint64, len(plain))
    return found


def checksums_of_images(fields: Mapping[str, npt.NDArray[Any]]) -> Checksums:
    """(n,) of what is known of n images: the arrays of IMAGE_FIELDS, n rows each."""
    parts = [_as_bytes(fields[name]) for name in IMAGE_FIELDS]
    return checksums_of_rows(np.concatenate(parts, axis=1))


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    plain = np.ascontiguousarray(array)
    found: npt.NDArray[np.uint8] = plain.view(np.uint8).reshape(
        len(plain), plain.dtype.itemsize * math.prod(plain.shape[1:])
    )
    return found


def static_checksum(
    fields: Mapping[str, npt.NDArray[Any]], provenance: Mapping[str, Any], attributes: Mapping[str, Any]
) -> int:
    """Of all that is known before the first image is read.

    Args:
        fields: the arrays of STATIC_FIELDS, and of GROUP if there is one.
        provenance: without the state of the image files, which a resume may renew.
        attributes: of the layers, as plain values.
    """
    summed = xxhash.xxh3_64()
    for name in (*STATIC_FIELDS, *([GROUP] if GROUP in fields else [])):
        array = np.ascontiguousarray(fields[name])
        summed.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        summed.update(array.tobytes())
    source = {key: value for key, value in dict(provenance["source"]).items() if key != "files"}
    plain = {**provenance, "source": source}
    summed.update(json.dumps([plain, attributes], sort_keys=True).encode())
    return summed.intdigest()
