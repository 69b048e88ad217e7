"""Checkpoints: read without running any code in them, searched for a network's tensors, and put into it."""

from __future__ import annotations

import argparse
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featx.errors import WeightsMismatch
from featx.runtime.text import nearest_names, printable

# Plain data that trainers store beside the tensors; making one of them runs nothing.
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
_DATA: list[Any] = [
    argparse.Namespace, np.dtype, np.ndarray, _SCALAR, _ARRAY,
    (_SCALAR, "numpy.core.multiarray.scalar"), (_ARRAY, "numpy.core.multiarray._reconstruct"),  # before numpy 2
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")),
]  # fmt: skip
_MAX_OBJECTS = 100_000  # looked at in one file: no checkpoint has more dictionaries and entries
# Wrappers put these before the names of what they wrap: DataParallel, torch.compile.
_WRAPPERS = {"module", "_orig_mod"}
_NEVER_WEIGHTS = {"n_averaged"}  # of torch.optim.swa_utils.AveragedModel
CHOICE = "#"  # FILE#NAME: one of several sets of weights in a file


@dataclass
class Gaps:
    """What a checkpoint does not give a network, or gives beside it.

    Attributes:
        missing: the network's tensor -> what is wrong with it; such a tensor is NaN.
        beside: tensors of a part of the network that the network itself does not have -> what they are.
    """

    missing: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)

    def refuse(self, where: str, tensors: Iterable[str]) -> None:
        """Raise WeightsMismatch if any of these tensors of the network is concerned."""
        asked = set(tensors)
        for name, reason in self.missing.items():
            if name in asked:
                raise WeightsMismatch(f"{where}{reason}")
        parts = {name.partition(".")[0] for name in asked}
        for name, reason in self.beside.items():
            if name.partition(".")[0] in parts:
                raise WeightsMismatch(f"{where}{reason}")


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint holds: tensors by name, perhaps within other dictionaries. No code in the file is ever run.

    Raises:
        WeightsMismatch: the file is damaged, or holds objects of types that featx does not make.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:9] == b"{":  # a safetensors header is a length in 8 bytes and JSON
            return load_file(path)
        with torch.serialization.safe_globals(_DATA):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsMismatch(f"{path} is not a readable safetensors file: {error}") from error
    except Exception as error:  # torch.load raises pickle, zip, runtime, key and value errors alike
        raise WeightsMismatch(f"{path} cannot be read as plain weights: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript program, which featx does not run. Save the state_dict of its network"
    blocked = re.search(r"(?:GLOBAL|global) ([\w.]+)", text)
    if blocked:
        return (
            f"it holds an object of type {printable(blocked[1])}, and making one would run code, which "
            f"featx never does. Save the network's state_dict() alone, or as .safetensors"
        )
    return f"{type(error).__name__}; it is damaged, or no file of torch.save or safetensors"


def find_state(network: nn.Module, content: Any, where: str, choice: str | None = None) -> dict[str, Tensor]:
    """The dictionary within a checkpoint whose tensors are the network's, under the network's names.

    What wrappers put before names is taken off ("module.", "_orig_mod."), and so is what stands before all of the
    network's names ("model.", as Lightning has it).

    Args:
        choice: the name of the dictionary, if there is more than one that fits.

    Raises:
        WeightsMismatch: none fits, or several do that differ.
    """
    expected = {n: tuple(t.shape) for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}

    def fitting(state: Mapping[str, Tensor]) -> int:
        return sum(expected.get(name) == tuple(tensor.shape) for name, tensor in state.items())

    sets = [one for key, state in _dictionaries(content) for one in _without_prefixes(key, state, expected)]
    names = [name for name, _ in sets]
    if choice is not None:
        sets = [one for one in sets if one[0] == choice]
        if not sets:
            raise WeightsMismatch(
                f"{where} holds no set of weights {choice!r}. Nearest: {nearest_names(choice, names)}"
            )
    if not sets:
        raise WeightsMismatch(f"{where} holds no state_dict (a dictionary of tensors by name)")
    most = max(fitting(state) for _, state in sets)
    best = [one for one in sets if fitting(one[1]) == most]
    first = best[0][1]
    if 2 * most > len(expected) and any(not _same_tensors(first, other, expected) for _, other in best[1:]):
        raise WeightsMismatch(
            f"{where} holds several sets of weights: {', '.join(name for name, _ in best)}. Choose one, as in "
            f"--weights {where}{CHOICE}{best[0][0]}"
        )
    return first


def _dictionaries(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary with tensors in a checkpoint, with the path to it; every object is looked at once."""
    waiting: list[tuple[str, Any]] = [("", content)]
    seen: set[int] = set()
    while waiting:
        path, value = waiting.pop(0)
        if not isinstance(value, Mapping) or id(value) in seen or len(seen) > _MAX_OBJECTS:
            continue
        seen.add(id(value))
        tensors = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}
        if tensors:
            yield path or "the file itself", tensors
        for name, item in value.items():
            if isinstance(item, Mapping) and isinstance(name, str):
                waiting.append((f"{path}.{name}" if path else name, item))


def _without_prefixes(
    key: str, state: Mapping[str, Tensor], expected: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The sets of weights in one dictionary: as it is, or what stands behind each prefix of the network's names."""
    kept = {name: tensor for name, tensor in state.items() if name not in _NEVER_WEIGHTS}
    wrappers = _WRAPPERS - {part for name in expected for part in name.split(".")}
    plain = {".".join(part for part in name.split(".") if part not in wrappers): t for name, t in kept.items()}
    if len(plain) < len(kept):  # two tensors would have one name: leave the names as they are
        plain = kept
    plain = _modern_densenet(plain)
    prefixes = _prefixes(plain, expected) or [""]
    for prefix in prefixes:
        part: dict[str, Tensor] = OrderedDict(
            (n.removeprefix(prefix), t) for n, t in plain.items() if n.startswith(prefix)
        )
        if hasattr(state, "_metadata"):
            part._metadata = state._metadata  # type: ignore[attr-defined]  # torch's own, see `fit_state`
        yield f"{key}.{prefix.rstrip('.')}" if prefix else key, part


def _prefixes(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> list[str]:
    """What stands before most of the network's names; nothing if they stand alone."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for length in range(len(parts)):
            if ".".join(parts[length:]) in expected:
                counts["".join(f"{part}." for part in parts[:length])] += 1
    return [prefix for prefix, count in counts.items() if 2 * count > len(expected)]


_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


def _modern_densenet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet files from before torch 0.4 write norm.1 for norm1."""
    if not any(_OLD_DENSENET.match(name) for name in state):
        return state
    return {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}


def _same_tensors(first: Mapping[str, Tensor], other: Mapping[str, Tensor], expected: Iterable[str]) -> bool:
    return all(
        name in other and first[name].shape == other[name].shape and torch.equal(first[name], other[name])
        for name in expected
        if name in first
    )


def fit_state(network: nn.Module, state: Mapping[str, Tensor], where: str) -> Gaps:
    """Put a checkpoint's tensors into a network, on whatever device the network is (meta included).

    Tensors that are missing or of another shape become NaN and are reported: they count only for the layers behind
    them. So do tensors that a part of the network does not have.

    Raises:
        WeightsMismatch: less than half of the network's tensors are there, or whole parts that it does not have.
    """
    expected = network.state_dict()
    gaps = Gaps()
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    # Files from before torch 0.4.1 lack num_batches_tracked, and it counts for nothing but training.
    for name in needed:
        shape = tuple(expected[name].shape)
        if name not in state:
            gaps.missing[name] = f" has no tensor {name} {shape}, which the network needs"
        elif tuple(state[name].shape) != shape:
            gaps.missing[name] = f": {name} is {tuple(state[name].shape)}, the network needs {shape}"
    parts = {name.partition(".")[0] for name in expected}
    for name, tensor in state.items():
        if name not in expected:
            reason = f" has a tensor {printable(name)} {tuple(tensor.shape)} that the network lacks"
            gaps.beside[name] = reason
            if name.partition(".")[0] not in parts:
                raise WeightsMismatch(f"{where}{reason}")
    if 2 * len(gaps.missing) > len(needed):
        raise WeightsMismatch(f"{where}{next(iter(gaps.missing.values()))}")
    ready: dict[str, Tensor] = OrderedDict()
    for name, tensor in expected.items():
        if name in gaps.missing:
            ready[name] = torch.full(tensor.shape, float("nan"), dtype=tensor.dtype)
        elif name in state:
            ready[name] = state[name].detach().to(tensor.dtype)
        else:
            ready[name] = torch.zeros((), dtype=torch.long)
    # MNASNet reads its format's version from here and refuses a dictionary without one.
    ready._metadata = getattr(state, "_metadata", expected._metadata)  # type: ignore[attr-defined]  # torch's own
    network.load_state_dict(ready, assign=True)
    return gaps
