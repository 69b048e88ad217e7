"""Where a network's weights come from: torchvision's published files, a file of the user's, or a seed.

Nothing that is loaded can run: checkpoints are read with `weights_only=True` or as safetensors. Published files
are fetched by featx itself from torchvision's addresses into torch's own cache, checked against the hash in
their name, and checked again, in full, on every load.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from featx.atomic import replacing
from featx.errors import DiskError, UsageError, WeightsMismatch, WeightsUnavailable
from featx.networks.mini import MINI_NAMES, shipped_weights
from featx.networks.names import nearest_names
from featx.networks.runs import is_run, read_run

Progress = Callable[[str, int, int], None]  # what, bytes so far, bytes in all (0 if unknown)
ATTEMPTS = 3
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from; exactly one of `url`, `file` and `seed` is set."""

    spec: str
    name: str
    url: str | None = None
    file: Path | None = None
    seed: int | None = None

    @property
    def published(self) -> str | None:
        """torchvision's name of these weights, None if they are not torchvision's."""
        return self.name if self.url else None


def weights_of(backbone: str, spec: str) -> WeightsSource:
    """What `--weights SPEC` means for a backbone.

    Args:
        spec: "default", a torchvision name such as "IMAGENET1K_V1", a path to a .pth, .pt or .safetensors file,
            or "random:SEED".

    Raises:
        UsageError: none of these.
    """
    if match := re.fullmatch(r"random:(\d{1,18})", spec):
        return WeightsSource(spec, spec, seed=int(match[1]))
    if Path(spec).suffix in (".pth", ".pt", ".safetensors"):
        file = Path(spec)
        if not file.is_file():
            raise UsageError(f"--weights: no file {spec}")
        return WeightsSource(spec, file.name, file=file)
    if (own := _own_weights(backbone)) is not None:
        if spec != "default":
            raise UsageError(
                f"--weights is {spec!r}; for {backbone} it can be default, random:SEED, a .pth or .safetensors file"
            )
        return own
    published = get_model_weights(backbone)
    if spec == "default":
        chosen = published.DEFAULT
    elif spec.rsplit(".", maxsplit=1)[-1] in published.__members__:
        chosen = published[spec.rsplit(".", maxsplit=1)[-1]]
    else:
        names = list(published.__members__)
        raise UsageError(
            f"--weights is {spec!r}; for {backbone} it can be default, {', '.join(names)}, random:SEED, or a "
            f".pth or .safetensors file. Nearest: {nearest_names(spec, names, 1)}"
        )
    return WeightsSource(spec, str(chosen), url=chosen.url)


def _own_weights(backbone: str) -> WeightsSource | None:
    """The weights of a mini or a run; None for torchvision's networks."""
    if backbone in MINI_NAMES:
        file = shipped_weights(backbone)
        if not file.is_file():
            raise UsageError(f"this copy of featx has no weights of {backbone}; use --weights FILE or random:SEED")
        return WeightsSource("default", f"{backbone} of featx", file=file)
    if not is_run(backbone):
        return None
    run = read_run(backbone)
    run.refuse_unfinished()
    return WeightsSource("default", f"fine-tuned {run.backbone}", file=run.weights)


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_state(state: dict[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over the names, types, shapes and bytes of all tensors, in order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
                f"Delete it and run again to download it anew"
            )
    if not recorded:
        with contextlib.suppress(DiskError), replacing(record) as partial:  # the folder may be mounted read-only
            partial.write_text(found + "\n")
    return path, found


def _hash_in(name: str) -> str:
    match = re.search(r"-([0-9a-f]{8,})\.", name)
    return match[1] if match else ""


def _download(url: str, path: Path, progress: Progress | None) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
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
            shipped = [name for name in MINI_NAMES if shipped_weights(name).is_file()]
            own = f"use -b {' or '.join(shipped)}, whose weights featx brings along; or " if shipped else ""
            raise WeightsUnavailable(
                f"cannot download {url}: {reason}. Without a network: fetch that file elsewhere, put it at {path} "
                f"or name it with --weights FILE; {own}try the machinery on untrained weights with --weights random:0"
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


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file, by name. No code in the file is ever run.

    A dictionary that keeps them under "state_dict" or "model" is unwrapped, and the "module." that DataParallel
    puts before every name is taken off.

    Raises:
        WeightsMismatch: the file is damaged, holds code, or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsMismatch(f"{path} is not a readable safetensors file: {error}") from error
    except Exception as error:  # torch.load raises pickle, zip, runtime, key and value errors alike
        raise WeightsMismatch(
            f"{path} cannot be read as plain weights ({type(error).__name__}): it is damaged or holds Python code, "
            f"which featx never runs. Save it again as a state_dict, or as .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsMismatch(f"{path} holds no state_dict (a dictionary of tensors by name)")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    tensors: dict[str, Tensor] = state
    return tensors


_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


def fit_state(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put a checkpoint's tensors into a network, on whatever device the network is (meta included).

    Raises:
        WeightsMismatch: naming the first tensor that is missing, left over or of another shape, with both shapes.
    """
    if any(_OLD_DENSENET.match(name) for name in state):  # DenseNet files from before torch 0.4
        state = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            continue  # files from before torch 0.4.1 lack it, and it counts for nothing but training
        if name not in state:
            raise WeightsMismatch(f"{where} has no tensor {name} {tuple(tensor.shape)}, which the network needs")
        if state[name].shape != tensor.shape:
            raise WeightsMismatch(
                f"{where}: {name} is {tuple(state[name].shape)}, the network needs {tuple(tensor.shape)}"
            )
    for name, tensor in state.items():
        if name not in expected:
            raise WeightsMismatch(f"{where} has a tensor {name} {tuple(tensor.shape)} that the network lacks")
    ready = OrderedDict((n, t.to(expected[n].dtype)) for n, t in state.items())
    for name in expected:
        ready.setdefault(name, torch.zeros((), dtype=torch.long))
    # MNASNet reads its format's version from here and refuses a dictionary without one.
    ready._metadata = getattr(state, "_metadata", expected._metadata)  # type: ignore[attr-defined]  # torch's own
    network.load_state_dict(ready, assign=True)
