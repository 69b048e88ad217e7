"""A network as a graph, and the names of what it computes.

A name is a module: the name of a module means what a forward hook on that module sees. Operations between modules are
named by their module and what they do, as torchvision names them: `layer1.0.add`. A module that is called
more than once has one name for each call: `layer1.0.relu`, `layer1.0.relu_1`. Where such a name would be that of
another module (a vision transformer has both `ln_1` and `ln_2`), the module keeps it and the number is raised.
"""

from __future__ import annotations

import math
import operator
import re
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import fx, nn

from featx.errors import UsageError
from featx.networks.registry import chain


def trace_network(network: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The graph of a network in eval mode, sharing its modules.

    Returns:
        graph; name -> node: first every node, in order of computation, under its own name; then the modules that
            contain others, under theirs, as the node whose output they return.
    """
    if chain(network) is not None:
        traced = fx.GraphModule(network, _ChainTracer(network).trace(network))
        nodes = [node for node in traced.graph.nodes if node.op != "output"]
        return traced, {str(node.target) if node.op == "call_module" else node.name: node for node in nodes}
    import torchvision

    tracer, graph = _trace(network, (math, torchvision.ops))
    present = set(graph.nodes)
    names = {name: node for node, name in tracer.name_of.items() if node in present and node.op != "output"}
    return fx.GraphModule(network, graph), names | {
        name: node for name, node in tracer.outputs.items() if node in present
    }


def _trace(network: nn.Module, wrapped: tuple[ModuleType, ...]) -> tuple[_NamingTracer, fx.Graph]:
    """Follow a network's modules; those whose `forward` decides by its values are taken as one operation.

    Raises:
        UsageError: the network's own `forward` does so.
    """
    whole: set[str] = set()
    while True:
        tracer = _NamingTracer(network, wrapped, frozenset(whole))
        try:
            return tracer, tracer.trace(network)
        except Exception as error:  # whatever code raises that is given a stand-in for a tensor
            if not tracer.failed_in:
                raise UsageError(
                    f"the forward of {type(network).__name__} cannot be followed: {str(error).splitlines()[0]}. Put "
                    f"what decides by values or sizes into a module of its own; it is then taken as one operation"
                ) from error
            whole.add(tracer.failed_in)


class _Tracer(fx.Tracer):
    """Follows the modules that its own thread calls.

    While a tracer of torch.fx runs, it receives every module call of the process. Without this, a network that
    computes in another thread fails, and two tracers record each other's modules.
    """

    _at_work = threading.Lock()
    _thread: int | None = None

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with self._at_work:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def is_own(self) -> bool:
        """Whether it is the thread that traces."""
        return threading.get_ident() == self._thread

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return super().call_module(m, forward, args, kwargs) if self.is_own() else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self.is_own() else attr_val


class _ChainTracer(_Tracer):
    """Takes the modules of a chain as they are, also those that are not PyTorch's own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._links = {id(module) for _, module in chain(network) or ()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._links or super().is_leaf_module(m, module_qualified_name)


class _NamingTracer(_Tracer):
    """Follows every module down to those of torch.nn, and records names.

    Attributes:
        name_of: the name of each node.
        outputs: name of a module that contains others -> the node whose value it returns (the first of several).
        failed_in: the innermost module in which it could not go on; empty if that is the network itself.
    """

    def __init__(self, network: nn.Module, wrapped: tuple[ModuleType, ...], whole: frozenset[str]) -> None:
        """Args:

        whole: modules that are not looked into.
        """
        super().__init__(autowrap_modules=wrapped)  # type: ignore[arg-type]  # it takes any number of modules
        self.name_of: dict[fx.Node, str] = {}
        self.outputs: dict[str, fx.Node] = {}
        self._modules = {name for name, _ in network.named_modules() if name}
        self._taken: set[str] = set()
        self._inside = [""]
        self._whole = whole
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.is_own():
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        self._inside.append(path)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or path
            raise
        finally:
            self._inside.pop()
        first = result[0] if isinstance(result, tuple | list) and result else result
        if isinstance(first, fx.Proxy) and not self.is_leaf_module(m, path):
            self.outputs[self._free_name(path, is_module=True)] = first.node
        return result

    def create_node(self, kind: str, target: Any, *rest: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, *rest, **named)
        if kind == "call_module":
            wanted = str(target)
        else:
            operation = re.sub(r"_\d+$", "", node.name)
            wanted = f"{self._inside[-1]}.{operation}" if self._inside[-1] else operation
        self.name_of[node] = self._free_name(wanted, is_module=kind == "call_module")
        return node

    def _free_name(self, wanted: str, *, is_module: bool) -> str:
        number, name = 0, wanted
        while name in self._taken or (name in self._modules and not (is_module and number == 0)):
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def own_names(nodes: Mapping[str, fx.Node]) -> dict[fx.Node, str]:
    """The name of each node itself, not of a module that returns its value."""
    found: dict[fx.Node, str] = {}
    for name, node in nodes.items():
        found.setdefault(node, name)
    return found


def output_of(traced: fx.GraphModule) -> fx.Node:
    """The node whose value the network returns."""
    returned = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    if not isinstance(returned, fx.Node):
        raise UsageError("this network returns several values; featx needs one that returns its logits alone")
    return returned


def first_of_several(node: fx.Node) -> fx.Node:
    """What a name means whose node returns several values, as attention does: the first, where the graph reads it."""
    for user in node.users:
        if user.op == "call_function" and user.target is operator.getitem and user.args[1] == 0:
            return user
    return node
