"""Features by another way: PyTorch's and torchvision's own code, one image at a time, to verify featx's with.

The unmodified network, torchvision's own transforms, values copied by a hook the moment they are computed: no
rewritten graph, no batches, no pooling code of featx. What is shared is the decoder, the names of operations between
modules, and what the axes of a layer are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, fx, nn
from torchvision import transforms as T
from torchvision.transforms._presets import ImageClassification

from featx.errors import WeightsMismatch
from featx.images.preprocess import CENTER, CORNERS, TEN, Preprocess
from featx.networks.backbone import Backbone
from featx.networks.download import Progress
from featx.networks.external.code import refuse_changed_code
from featx.networks.graph.layout import CHANNELS_LAST, CLASS_AND_TOKENS, MAP
from featx.networks.graph.tracing import own_names, trace_network
from featx.networks.layer_names import SOFTMAX
from featx.networks.load import load_network
from featx.networks.weights import weights_of
from featx.store.schema import LayerSpec


class Reference:
    """RGB image -> {layer: pooled values}, by torchvision alone."""

    def __init__(self, made: dict[str, Any], weights_file: str | None, progress: Progress | None) -> None:
        """Build the network a features file was made with.

        Args:
            made: the file's provenance.
            weights_file: `--weights-file`, if those of the file are elsewhere now.

        Raises:
            WeightsMismatch: they are other weights.
        """
        refuse_changed_code(made["backbone"], made.get("code"))
        source = weights_of(made["backbone"], weights_file or made["weights"]["spec"])
        source = replace(source, published=made["weights"].get("published", source.published))
        loaded = load_network(made["backbone"], source, progress)
        if loaded.sha256 != made["weights"]["sha256"]:
            raise WeightsMismatch(
                f"the file was made with weights of sha256 {made['weights']['sha256'][:16]}..., {source.name} has "
                f"{loaded.sha256[:16]}...; say where the right ones are with --weights-file"
            )
        self.network = loaded.network
        preprocess = Preprocess.from_values(made["preprocess"])
        self.views, self.aggregate = torchvision_transforms(preprocess), preprocess.aggregate
        self.layers: dict[str, str] = {name: entry["node"] for name, entry in made["layers"].items()}
        self.pooling: str = made["pooling"]
        described = Backbone(made["backbone"], preprocess.crop, source.published)
        self._names = described.names
        self._layouts = {name: described.geometry_of(described.names.resolve(name)[0]).layout for name in self.layers}
        self._caught: dict[str, Tensor] = {}
        self._modules: dict[str, str] = {}
        modules = dict(self.network.named_modules())
        for layer, node in self.layers.items():
            name = layer if layer in modules else node  # a name is a module
            if name in modules:
                self._modules[layer] = name
        for name in set(self._modules.values()):
            modules[name].register_forward_hook(self._hook(name))
        operations = [n for layer, n in self.layers.items() if layer not in self._modules and not n.endswith(SOFTMAX)]
        self._operations = _Operations(self.network, operations) if operations else None

    def differing_layers(self, stored: Mapping[str, LayerSpec]) -> str:
        """Layers whose node or ReLU in a file is not what the network has under that name; empty if none."""
        wrong = []
        for name, spec in stored.items():
            meant = self._names.resolve(name)[0]
            if (meant.node, meant.relu) != (spec.node, spec.relu):
                wrong.append(f"{name} is {meant.node}, the file says {spec.node}")
        return "; ".join(wrong[:3])

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            self._caught.setdefault(name, first.detach().clone())  # of several calls the first

        return keep

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        found = [self._of_view(view) for view in self.views(image)]
        if len(found) == 1:
            return found[0]
        together = {name: torch.stack([values[name] for values in found]) for name in found[0]}
        if self.aggregate == "stack":
            return together
        return {
            name: values.mean(0) if self.aggregate == "mean" else values.amax(0) for name, values in together.items()
        }

    def _of_view(self, view: Tensor) -> dict[str, Tensor]:
        batch = view.unsqueeze(0)
        self._caught.clear()
        logits = self.network(batch)
        operations = self._operations(batch) if self._operations else {}
        values: dict[str, Tensor] = {}
        for layer, node in self.layers.items():
            if node.endswith(SOFTMAX):
                found = torch.softmax(logits, dim=-1)
            elif layer in self._modules:
                found = self._caught[self._modules[layer]]
            else:
                found = operations[node]
            values[layer] = pool_plainly(found[0], self.pooling, self._layouts[layer])
        return values


class _Operations(fx.Interpreter):
    """Runs a network step by step, and copies what some operations give the moment they have run."""

    def __init__(self, network: nn.Module, wanted: list[str]) -> None:
        traced, nodes = trace_network(network)
        super().__init__(traced)
        self._name_of = {node: name for node, name in own_names(nodes).items() if name in wanted}
        self._found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._name_of:
            self._found[self._name_of[n]] = value.detach().clone()
        return value

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        self.run(batch)
        return self._found


def torchvision_transforms(preprocess: Preprocess) -> Callable[[Image.Image], list[Tensor]]:
    """The same preprocessing, made of torchvision's own transforms and Pillow's `ImageOps`: the views of an image."""
    side, how = preprocess.crop, T.InterpolationMode(preprocess.interpolation)
    plain = preprocess.fit == "crop" and preprocess.views == CENTER and not preprocess.grey
    if plain and not preprocess.mirror:
        preset = ImageClassification(
            crop_size=side, resize_size=preprocess.resize, mean=preprocess.mean, std=preprocess.std,
            interpolation=how,
        )  # fmt: skip
        return lambda image: [preset(image)]
    cut: dict[str, Any] = {CENTER: T.CenterCrop(side), CORNERS: T.FiveCrop(side), TEN: T.TenCrop(side)}
    steps: list[Any] = [T.Resize(preprocess.resize, how), cut[preprocess.views]]
    if preprocess.fit == "squash":
        steps = [T.Resize((side, side), how)]
    elif preprocess.pad is not None:
        method = Image.Resampling[preprocess.interpolation.upper()]
        steps = [lambda image: ImageOps.pad(image, (side, side), method, preprocess.pad)]
    to_tensor = [T.ToTensor(), T.Normalize(preprocess.mean, preprocess.std)]
    finish = T.Compose([*([T.Grayscale(3)] if preprocess.grey else []), *to_tensor])

    def views(image: Image.Image) -> list[Tensor]:
        made = T.Compose(steps)(image)
        found = [finish(view) for view in (made if isinstance(made, tuple) else (made,))]
        return [view.flip(-1) for view in found] if preprocess.mirror else found

    return views


def pool_plainly(values: Tensor, spec: str, layout: str = MAP) -> Tensor:
    """Pool one image's map or tokens by the definitions, window by window; vectors pass unchanged."""
    if spec == "none" or values.ndim == 1:
        return values
    if spec == "flatten":
        return values.reshape(-1)
    if spec in ("cls", "mean", "cls+mean"):
        tokens = list(values)
        first = [tokens.pop(0)] if layout == CLASS_AND_TOKENS else []
        mean = [torch.stack(tokens).mean(0)]
        return torch.cat({"cls": first, "mean": mean, "cls+mean": first + mean}[spec])
    if layout == CHANNELS_LAST:
        values = torch.stack([values[..., channel] for channel in range(values.shape[-1])])
    if spec == "avg":
        return values.flatten(1).mean(1)
    if spec == "max":
        return values.flatten(1).max(1).values
    _, height, width = values.shape
    pooled = []
    for n in (int(level) for level in spec.removeprefix("spp:").split(",")):
        grid = torch.empty(len(values), n, n)
        for i in range(n):
            for j in range(n):
                top, bottom = i * height // n, -(-(i + 1) * height // n)
                left, right = j * width // n, -(-(j + 1) * width // n)
                grid[:, i, j] = values[:, top:bottom, left:right].flatten(1).max(1).values
        pooled.append(grid.reshape(-1))
    return torch.cat(pooled)
