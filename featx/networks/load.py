"""A network with its weights in place: published, of a file, of a seed, or as code makes them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from featx.errors import WeightsMismatch
from featx.networks.architectures.architecture import WeightsSource
from featx.networks.architectures.forms.flow import adapted
from featx.networks.build import construct
from featx.networks.checkpoints import Gaps, find_state, fit_state, read_checkpoint
from featx.networks.download import Progress, fetch_weights
from featx.networks.external.caffe import is_caffemodel, read_caffemodel, state_by_layers
from featx.networks.external.code import refuse_changed_code
from featx.networks.external.matconvnet import is_matconvnet, read_matconvnet
from featx.networks.external.timm_models import fetch_from_hub, load_timm
from featx.networks.graph.capture import capture_layers, trace_nodes
from featx.networks.layer_names import Layer
from featx.networks.registry import architecture
from featx.networks.run_folder import is_run, read_run
from featx.networks.weights import sha256_of_state
from featx.runtime.files import sha256_of_file


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights in place.

    Attributes:
        network: torchvision's module, eval mode, float32, no gradients.
        sha256: of the weights file, or of the tensors when they come from a seed.
        gaps: what the weights do not give; the layers before are good.
    """

    network: nn.Module
    source: WeightsSource
    sha256: str
    gaps: Gaps = field(default_factory=Gaps)

    def capture(self, layers: Iterable[Layer]) -> fx.GraphModule:
        """(B, 3, H, W) -> {layer name: activations}; see `featx.networks.graph.capture.tap`."""
        traced, nodes = trace_nodes(self.network)
        captured = capture_layers(traced, nodes, {layer.name: layer.node for layer in layers})
        self.gaps.refuse(str(self.source.file or self.source.name), captured.state_dict())
        _refuse_missing_weights(captured, self.source)
        return captured


def load_network(name: str, source: WeightsSource, progress: Progress | None = None) -> LoadedNetwork:
    """Build a backbone and put weights into it.

    Raises:
        WeightsMismatch, WeightsUnavailable: see `featx.networks.weights`.
    """
    if source.seed is not None or source.built:
        network = construct(name, source.seed or 0)
        return LoadedNetwork(network, source, sha256_of_state(network.state_dict()))
    if source.url is not None and source.url.startswith("hf-hub:"):
        path = fetch_from_hub(source.url)
        return LoadedNetwork(load_timm(name, path).eval().requires_grad_(False), source, sha256_of_file(path))
    if source.file is None:
        path, sha256 = fetch_weights(str(source.url), progress)
        network, gaps = _loaded(name, source, path)
        return LoadedNetwork(network, source, sha256, gaps)
    with ThreadPoolExecutor(1) as beside:  # a core of its own for the tenth of a second that a hash takes
        hashed = beside.submit(sha256_of_file, source.file)
        network, gaps = _loaded(name, source, source.file)
    _refuse_changed_run(name, source, hashed.result())
    return LoadedNetwork(network, source, hashed.result(), gaps)


def _refuse_changed_run(name: str, source: WeightsSource, sha256: str) -> None:
    """Raise WeightsMismatch if a run's own weights, or its code, are not those that its training has stored."""
    if not is_run(name) or (run := read_run(name)).weights != source.file:
        return
    refuse_changed_code(name, (run.plan.get("weights") or {}).get("code"))
    if run.weights_sha256 not in ("", sha256):
        raise WeightsMismatch(
            f"{source.file} has sha256 {sha256[:16]}..., and {name}'s report says {run.weights_sha256[:16]}...: "
            f"it was damaged or changed after the training"
        )


def _loaded(name: str, source: WeightsSource, path: Path) -> tuple[nn.Module, Gaps]:
    external = architecture(name).external
    network = construct(name, 0 if external else None, source.published)
    if external == "timm" and not is_run(name):
        return _loaded_by_timm(name, network, source, path)
    if is_caffemodel(path):
        state = state_by_layers(network, read_caffemodel(path), str(path), reversed_colours=True)
    elif is_matconvnet(path):
        state = state_by_layers(network, read_matconvnet(path), str(path), reversed_colours=False)
    else:
        state = find_state(network, read_checkpoint(path), str(path), source.choice)
    gaps = fit_state(network, adapted(network, state), str(path))
    return network.eval().requires_grad_(False), gaps


def _loaded_by_timm(name: str, network: nn.Module, source: WeightsSource, path: Path) -> tuple[nn.Module, Gaps]:
    """Weights of a file, as they are or, where their names are not the network's, as timm translates them."""
    try:
        gaps = fit_state(network, find_state(network, read_checkpoint(path), str(path), source.choice), str(path))
        gaps.refuse(str(path), network.state_dict())
    except WeightsMismatch as error:
        try:
            return load_timm(name, path).eval().requires_grad_(False), Gaps()
        except WeightsMismatch:
            raise error from None
    return network.eval().requires_grad_(False), gaps


def _refuse_missing_weights(captured: fx.GraphModule, source: WeightsSource) -> None:
    """VGG's IMAGENET1K_FEATURES, for one, has NaN where its classifier should be."""
    for name, tensor in captured.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not _all_finite(tensor):
            raise WeightsMismatch(
                f"weights {source.name}: {name} holds NaN or infinite values, so layers behind it mean nothing. "
                f"Ask for earlier layers or use other weights"
            )


def _all_finite(tensor: Tensor) -> bool:
    """As torch.isfinite(tensor).all(), without copies of 400 MB for VGG's fc6."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))
