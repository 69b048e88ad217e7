"""A network that the user's own code makes: a callable that gives an nn.Module, or (module, preprocessing)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from torch import nn

from featx.errors import UsageError
from featx.networks.architectures.architecture import IMAGENET, Architecture, WeightsSource
from featx.networks.external.code import source_of, split, trusted
from featx.runtime.stored import Preprocessing


class OwnWeights:
    """The weights that the code's module comes with, and how its images are prepared."""

    def __init__(self, name: str) -> None:
        self.network = name

    def source(self, spec: str) -> WeightsSource:
        if spec != "default":
            raise UsageError(
                f"--weights is {spec!r}; for {self.network} it can be default (as the code makes it), random:SEED, "
                f"or a .pth or .safetensors file"
            )
        return WeightsSource(spec, f"as {self.network} makes them", built=True)

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        return {**IMAGENET, **(self._said or {})}

    def files(self) -> dict[str, str]:
        return {}

    @property
    def assumed(self) -> str | None:
        """What to tell the user if the code says nothing of preprocessing."""
        if self._said is not None:
            return None
        return (
            f"note: {self.network} says nothing of preprocessing; images are prepared as for ImageNet (resize "
            f"{IMAGENET['resize']}, crop {IMAGENET['crop']}, {IMAGENET['interpolation']}, ImageNet's mean and "
            f"deviation). It can return (module, preprocessing); --resize, --crop, --mean and --std say otherwise"
        )

    @functools.cached_property
    def _said(self) -> dict[str, Any] | None:
        return make(self.network)[1]


@functools.cache
def own_architecture(name: str) -> Architecture:
    """The table's entry of a network made by code.

    Raises:
        UsageError: code that nobody has named, or that cannot be run.
    """

    def build(published: str | None, init: bool) -> nn.Module:
        return make(name)[0]

    _callable(trusted(name))
    return Architecture(name, build, OwnWeights(name), external="code")


def make(name: str) -> tuple[nn.Module, dict[str, Any] | None]:
    """Call the code: the module, and its preprocessing if it gives one.

    Raises:
        UsageError: it fails, or gives something else.
    """
    function = _callable(trusted(name))
    try:
        with _importable(name):
            made = function()
    except Exception as error:
        raise UsageError(f"{name} failed: {type(error).__name__}: {error}") from error
    module, said = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"{name} gave {type(module).__name__}; it must give an nn.Module, or (module, preprocessing)"
        )
    module.to("cpu")
    return module, None if said is None else _checked(name, said)


def _checked(name: str, said: Any) -> dict[str, Any]:
    """A preprocessing as it may be stored.

    Raises:
        UsageError: unknown names, or values that cannot be.
    """
    known = set(Preprocessing.__struct_fields__) - {"mirror", "views", "aggregate"}
    if not isinstance(said, Mapping) or set(said) - known:
        raise UsageError(f"{name} gave the preprocessing {said!r}; it must be a dict with some of {sorted(known)}")
    values = {**IMAGENET, "squash": False, **said}
    try:
        msgspec.convert(values, Preprocessing)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name} gave the preprocessing {said!r}: {error}") from None
    return {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}


@functools.cache
def _callable(name: str) -> Any:
    what = split(name)[1]
    module = _imported(name)
    if not callable(getattr(module, what, None)):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{source_of(name)} has no callable {what}; it has {', '.join(sorted(own)[:10]) or 'none'}")
    return getattr(module, what)


def _imported(name: str) -> ModuleType:
    where, path = split(name)[0], source_of(name)
    try:
        with _importable(name):
            if not where.endswith(".py"):
                return importlib.import_module(where)
            spec = importlib.util.spec_from_file_location(f"featx_own_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    except Exception as error:
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


@contextmanager
def _importable(name: str) -> Iterator[None]:
    """What lies beside a file can be imported by it."""
    where = split(name)[0]
    folder = str(Path(where).resolve().parent) if where.endswith(".py") else None
    if folder is not None:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder is not None and folder in sys.path:
            sys.path.remove(folder)
