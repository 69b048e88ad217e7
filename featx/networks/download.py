"""Published weights: downloaded once, checked against their hash on every load."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch

from featx.errors import DiskError, WeightsMismatch, WeightsUnavailable
from featx.networks.architectures.mini import NAMES as SHIPPED
from featx.runtime.files import new_file_beside, replacing, sha256_of_file

Progress = Callable[[str, int, int], None]  # what, bytes so far, bytes in all (0 if unknown)
ATTEMPTS = 3
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where torch keeps downloaded checkpoints: $TORCH_HOME/hub/checkpoints."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch_weights(url: str, progress: Progress | None = None, folder: Path | None = None) -> tuple[Path, str]:
    """The local copy of a published checkpoint, downloaded if it is not there, and its sha256.

    The first hexadecimal digits of the hash are part of every published name (alexnet-owt-7be5be79.pth). The
    full hash is kept in NAME.sha256 beside the file and compared on every call. FEATX_WEIGHTS_MIRROR replaces
    everything before the file's name in the address.

    Raises:
        WeightsMismatch: the file is not what its name or its .sha256 says.
        WeightsUnavailable: the download failed.
        DiskError: the file could not be written.
    """
    name = url.rsplit("/", 1)[-1]
    folder = folder or cache_folder()
    path, record = folder / name, folder / f"{name}.sha256"
    if not path.exists():
        mirror = os.environ.get("FEATX_WEIGHTS_MIRROR")
        address = f"{mirror.rstrip('/')}/{name}" if mirror else url
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(address, path, progress)
        except OSError as error:
            raise DiskError(
                f"cannot write {path}: {error.strerror or error}. Let TORCH_HOME name a folder that can be written, "
                f"or the weights a file, with --weights FILE"
            ) from error
    found = sha256_of_file(path)
    recorded = record.read_text().strip() if record.exists() else ""
    for expected in (recorded, _hash_in(name)):
        if not found.startswith(expected):
            raise WeightsMismatch(
                f"{path} has sha256 {found[:16]}..., expected {expected[:16]}: it is damaged or was changed. "
                f"Delete it and run again to download it again"
            )
    if not recorded:
        with contextlib.suppress(DiskError), replacing(record) as partial:  # the folder may be mounted read-only
            partial.write_text(found + "\n")
    return path, found


def _hash_in(name: str) -> str:
    match = re.search(r"-([0-9a-f]{8,})\.", name)
    return match[1] if match else ""


def _download(url: str, path: Path, progress: Progress | None) -> None:
    partial = new_file_beside(path, ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            digest = _copy_to_file(url, partial, progress)
            break
        except urllib.error.HTTPError as error:
            reason, final = f"HTTP {error.code} {error.reason}", error.code < 500
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason, final = str(getattr(error, "reason", error)), False
        partial.unlink(missing_ok=True)
        if final or attempt == ATTEMPTS:
            raise WeightsUnavailable(
                f"cannot download {url}: {reason}. Without a network: fetch that file elsewhere, put it at {path} "
                f"or name it with --weights FILE; use -b {' or '.join(SHIPPED)}, whose weights are part of featx; or "
                f"try untrained weights with --weights random:0"
            )
        time.sleep(attempt)
    if not digest.startswith(_hash_in(path.name)):
        partial.unlink()
        raise WeightsMismatch(
            f"{url} has sha256 {digest[:16]}..., but its name promises {_hash_in(path.name)}: not kept. "
            f"Something between here and the server changed it"
        )
    partial.replace(path)


def _copy_to_file(url: str, path: Path, progress: Progress | None) -> str:
    digest, done = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=30) as answer, path.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(f"downloading {url.rsplit('/', 1)[-1]}", done, total)
        file.flush()
        os.fsync(file.fileno())
    if total and done != total:
        raise ConnectionError(f"the connection broke after {done} of {total} bytes")
    return digest.hexdigest()
