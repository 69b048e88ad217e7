"""Spare our commands the loading of torch.compile, which takes as long as the rest of PyTorch and is not used here.

PyTorch and torchvision (2.11 to 2.14, 0.26 to 0.29) load `torch._dynamo` with all it needs, a second of the three in
which a command starts, to mark functions as not to be compiled and for one question that only RoI align asks.
(Training still loads it: the optimisers, and process groups, ask for more.) And for the shapes of convolutions they
load `symbolic_shapes` with SymPy, half a second and 40 MB, to be told that what is true is true. What operators do on
the meta device, written in Python, takes another third of a second. Random generators need it as well: an extraction
alone starts without (`spare_the_meta_kernels`), until something wants it (`want_meta_kernels`). While all this is
loaded, Python looks for garbage among it again and again, another third of a second (`importing`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_UTILITIES = f"{_COMPILER}.utils"
_SYMBOLS = "torch.fx.experimental.symbolic_shapes"
_META = "torch._meta_registrations"
_lock = threading.RLock()


def spare_the_compiler() -> None:
    """Load torch.compile when it is first used for anything but that.

    For a program of our own, before torch is imported: functions that were not to be compiled are no longer marked.
    """
    if "torch" not in sys.modules:
        sys.modules[_COMPILER] = _Compiler(_COMPILER)
        sys.modules[_UTILITIES] = _Utilities(_UTILITIES)
        sys.modules[_SYMBOLS] = _Symbols(_SYMBOLS)
        sys.meta_path.insert(0, _Loaded())


def spare_the_meta_kernels() -> None:
    """After `spare_the_compiler`, in a program that runs classic networks, draws nothing and trains nothing."""
    if "torch" not in sys.modules and isinstance(sys.modules.get(_COMPILER), _StandIn):
        sys.modules[_META] = _StandIn(_META)


def want_the_compiler() -> None:
    """Take `spare_the_compiler` back, before torch is imported: something is going to be compiled."""
    standing_in = sys.modules.get(_COMPILER)
    if isinstance(standing_in, _StandIn):
        standing_in.loaded()


def want_meta_kernels() -> None:
    """Before anything but views and PyTorch's structured operators runs on the meta device."""
    standing_in = sys.modules.get(_META)
    if isinstance(standing_in, _StandIn):
        standing_in.loaded()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Load modules without looking for garbage: what they make stays, and is not looked at later either.

    In a program of our own (`spare_the_compiler`); other programs decide about their objects themselves.
    """
    if not any(isinstance(finder, _Loaded) for finder in sys.meta_path) or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _StandIn(ModuleType):
    """Takes the place of a module until anything is asked of it that it does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, is_package=name == _COMPILER)

    def __getattr__(self, name: str) -> Any:
        # The import system asks modules for the like of __file__, and a package for __path__ to load a part of it.
        if name.startswith("__") and (name, self.__name__) != ("__path__", _COMPILER):
            raise AttributeError(name)
        return getattr(self.loaded(), name)

    def loaded(self) -> ModuleType:
        """The module itself."""
        with _lock:
            together = (
                (_COMPILER, _UTILITIES, _META) if self.__name__ in (_COMPILER, _UTILITIES) else (self.__name__,)
            )
            for name in together:
                if isinstance(sys.modules.get(name), _StandIn):
                    del sys.modules[name]
            if _META in together and "torch" in sys.modules:  # else torch loads it itself
                importlib.import_module(_META)
            return importlib.import_module(self.__name__)


class _Compiler(_StandIn):
    def disable(self, fn: Callable[..., Any] | None = None, recursive: bool = True, **_: Any) -> Callable[..., Any]:
        """Nothing is compiled; as a decorator with or without arguments."""
        return (lambda function: function) if fn is None else fn


class _Utilities(_StandIn):
    def is_compile_supported(self, device_type: str) -> bool:
        return bool(self.loaded().is_compile_supported(device_type))


class _Symbols(_StandIn):
    """Answers for plain truth values; for symbols the module itself is loaded."""

    def __getattr__(self, name: str) -> Any:
        if name in ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true"):
            return functools.partial(self._answer, name, lambda values: values[0])
        if name in ("sym_and", "sym_or"):
            return functools.partial(self._answer, name, all if name == "sym_and" else any)
        return super().__getattr__(name)

    def _answer(self, name: str, of_plain: Callable[[tuple[bool, ...]], bool], *values: Any) -> Any:
        plain = all(type(value) is bool for value in values)
        return of_plain(values) if plain else getattr(self.loaded(), name)(*values)


class _Loaded(MetaPathFinder):
    """Gives parts of the package that are there already.

    To import a part of a stand-in, Python asks it for its __path__, which loads the package and perhaps that part.
    Then it goes on to look for the part: it must not be run a second time.
    """

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{_COMPILER}.") or fullname not in sys.modules:
            return None
        found = sys.modules[fullname]
        return None if isinstance(found, _StandIn) else ModuleSpec(fullname, _Given(found))


class _Given(Loader):
    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        with contextlib.suppress(AttributeError):  # PyTorch's modules of settings refuse new names
            module.__spec__ = self._spec
