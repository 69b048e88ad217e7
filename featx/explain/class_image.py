"""What a network takes for the essence of a class: the image with the highest score, found by its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from featx.explain.subject import LOGITS, Subject

# The directions in which the colours of ImageNet's photographs vary together (Olah et al. 2017, appendix).
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_SHRINKING_FUNCTIONS = ("flatten", "mean", "adaptive_avg_pool2d", "dropout")
_SHRINKING = ("AdaptiveAvgPool2d", "AvgPool2d", "Flatten", "Dropout", "Identity")


@dataclass(frozen=True)
class ClassImages:
    """Of K classes.

    Attributes:
        pixels: (K, S, S, 3) uint8.
        scores: (steps + 1, K) of the class at every step, without jitter and other changes.
        probability: (K,) of the class, of the pixels as they are.
    """

    pixels: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    probability: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Climb:
    """How the image is searched for.

    Attributes:
        parameters: what is climbed: "pixels", or "fourier", their spectrum.
        steps, rate: of Adam.
        l2: lambda of the penalty, times the sum of squares of the normalised image.
        jitter: pixels that the image is moved by at random before every step; at most, in each direction.
        turn: whether it is also turned by up to 10 degrees and scaled by up to 10 % at random.
        blur: deviation in pixels of a Gauss filter over the image after every step, of "pixels".
    """

    parameters: str
    steps: int
    rate: float
    l2: float
    jitter: int
    turn: bool
    blur: float
    seed: int


def class_images(
    subject: Subject, classes: list[int], climb: Climb, advance: Callable[[int], None] = lambda done: None
) -> ClassImages:
    """argmax over images I of S_c(I) - lambda |I|^2, begun at the mean colour; S_c is the score before the softmax.

    Where the scores are means over positions behind a ReLU (SqueezeNet), the score is taken before it: behind it
    there is no gradient where the class is not seen at all. Pixels stay between black and white.

    Source:
        Simonyan, Vedaldi & Zisserman, Deep inside convolutional networks, ICLR workshop 2014, section 2; blur:
        Yosinski et al., Understanding neural networks through deep visualization, 2015; jitter, turning, "fourier":
        Olah, Mordvintsev & Schubert, Feature visualization, Distill 2017.
    """
    network = before_last_relu(subject.network)
    device, side = subject.device, subject.side
    labels = torch.tensor(classes, device=device)
    generator = torch.Generator().manual_seed(climb.seed)
    black, white = (
        subject.normalised(np.full((1, side, side, 3), value, np.uint8))[:, :, :1, :1] for value in (0, 255)
    )
    if climb.parameters == "pixels":
        start = torch.zeros((len(classes), 3, side, side), device=device)
    else:
        start = 0.01 * torch.randn((1, 3, side, side // 2 + 1, 2), generator=generator).to(device)
        start = start.repeat(len(classes), 1, 1, 1, 1)
    start.requires_grad_()
    # Momentum of its own for every value: classes that are searched for together do not touch each other.
    adam = torch.optim.Adam([start], lr=climb.rate)

    def image() -> Tensor:
        if climb.parameters == "pixels":
            return start
        return black + (white - black) * torch.sigmoid(_from_spectrum(start, side))

    scores = []
    for step in range(climb.steps + 1):
        with torch.no_grad():
            scores.append(_scores(network, image(), labels).float().cpu())
        if step == climb.steps:
            break
        adam.zero_grad()
        now = image()
        loss = climb.l2 * now.square().sum() - _scores(network, _changed(now, climb, generator), labels).sum()
        torch.autograd.backward(loss)
        adam.step()
        if climb.parameters == "pixels":
            with torch.no_grad():
                if climb.blur:
                    start.copy_(_blurred(start, climb.blur))
                start.copy_(torch.minimum(torch.maximum(start, black), white))
        advance(1)
    with torch.no_grad():
        shares = ((image() - black) / (white - black)).clamp(0, 1)
        pixels = (255 * shares).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        logits = subject.logits(subject.normalised(pixels)).double()
        probability = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return ClassImages(pixels, torch.stack(scores).numpy(), probability.cpu().numpy())


def before_last_relu(network: fx.GraphModule) -> fx.GraphModule:
    """The network without a ReLU that has only averages between it and the logits; itself if there is none."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(network.graph, copies)
    node = _logits_node(network)
    while node is not None and _only_shrinks(network, node):
        node = next(iter(node.all_input_nodes), None)
    if node is None or not _is_relu(network, node):
        return network
    copy = copies[node]
    before = copy.all_input_nodes[0]
    copy.replace_all_uses_with(before)
    graph.erase_node(copy)
    graph.output(torch.fx.node.map_arg(result, lambda one: before if one is copy else one))
    changed = fx.GraphModule(network, graph)
    changed.recompile()
    return changed.eval()


def _logits_node(network: fx.GraphModule) -> fx.Node | None:
    output = next(node for node in network.graph.nodes if node.op == "output")
    outputs = output.args[0]
    found = outputs.get(LOGITS) if isinstance(outputs, dict) else None
    return found if isinstance(found, fx.Node) else None


def _only_shrinks(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))).__name__ in _SHRINKING
    name = getattr(node.target, "__name__", str(node.target))
    return node.op in ("call_function", "call_method") and name in (
        "flatten",
        "mean",
        "adaptive_avg_pool2d",
        "dropout",
    )


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (torch.relu, F.relu, "relu")


def _scores(network: fx.GraphModule, images: Tensor, labels: Tensor) -> Tensor:
    found: Tensor = network(images)[LOGITS].gather(1, labels[:, None])[:, 0]
    return found


def _from_spectrum(spectrum: Tensor, side: int) -> Tensor:
    """(K, 3, S, S) of (K, 3, S, S // 2 + 1, 2): slow changes weigh as much as fast ones, colours vary together."""
    vertical = torch.fft.fftfreq(side, device=spectrum.device)[:, None]
    horizontal = torch.fft.rfftfreq(side, device=spectrum.device)[None]
    frequency = torch.sqrt(vertical.square() + horizontal.square()).clamp_min(1 / side)
    values = torch.fft.irfft2(torch.view_as_complex(spectrum) / frequency, s=(side, side), norm="ortho") / 4
    directions = torch.tensor(_COLOURS, device=spectrum.device)
    directions = directions / directions.norm(dim=0).max()
    return torch.einsum("rc,kchw->krhw", directions, values)


def _changed(images: Tensor, climb: Climb, generator: torch.Generator) -> Tensor:
    """The images moved, and turned and scaled, by the same random amounts."""
    if climb.jitter:
        down, right = torch.randint(-climb.jitter, climb.jitter + 1, (2,), generator=generator).tolist()
        images = torch.roll(images, (down, right), (2, 3))
    if not climb.turn:
        return images
    scale, angle = (torch.rand(2, generator=generator) * 2 - 1).tolist()
    turn = torch.tensor(np.radians(10 * angle))
    cos, sin, size = float(torch.cos(turn)), float(torch.sin(turn)), 1 + 0.1 * scale
    matrix = torch.tensor([[cos / size, -sin / size, 0.0], [sin / size, cos / size, 0.0]], device=images.device)
    grid = F.affine_grid(matrix.repeat(len(images), 1, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _blurred(images: Tensor, deviation: float) -> Tensor:
    reach = max(1, int(np.ceil(3 * deviation)))
    places = torch.arange(-reach, reach + 1, device=images.device)
    weights = torch.exp(-places.square() / (2 * deviation**2))
    weights = (weights / weights.sum()).repeat(3, 1, 1, 1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)
