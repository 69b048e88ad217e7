"""Spare our commands the loading of torch.compile, which takes as long as the rest of PyTorch and is not used here.

PyTorch and torchvision (2.11 to 2.14, 0.26 to 0.29) load `torch._dynamo` and SymPy, 1.2 of the 3.2 seconds in which a
command starts, to mark functions as not to be compiled and for one question that only RoI align asks.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"


def spare_the_compiler() -> None:
    """Load torch.compile when it is first used for anything but that.

    For a program of our own, before torch is imported: functions that were not to be compiled are no longer marked.
    """
    if "torch" not in sys.modules:
        sys.modules[_COMPILER] = _Compiler(_COMPILER)
        sys.modules[f"{_COMPILER}.utils"] = _Utilities(f"{_COMPILER}.utils")


class _StandIn(ModuleType):
    """Takes the place of a module until anything is asked of it that it does not have."""

    def __getattr__(self, name: str) -> Any:
        # The import system asks modules for the like of __file__, and a package for __path__ to load a part of it.
        if name.startswith("__") and (name, self.__name__) != ("__path__", _COMPILER):
            raise AttributeError(name)
        return getattr(self.loaded(), name)

    def loaded(self) -> ModuleType:
        """The module itself."""
        for name in (_COMPILER, f"{_COMPILER}.utils"):
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
        return importlib.import_module(self.__name__)


class _Compiler(_StandIn):
    def disable(self, function: Callable[..., Any], recursive: bool = True, **_: Any) -> Callable[..., Any]:
        """Nothing is compiled."""
        return function


class _Utilities(_StandIn):
    def is_compile_supported(self, device_type: str) -> bool:
        return bool(self.loaded().is_compile_supported(device_type))
