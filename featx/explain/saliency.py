"""Which pixels decide: gradients of a class's score, and what others have made of them.

All of them differentiate the score before the softmax: the probability's gradient also says what speaks against the
other classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from featx.errors import UsageError
from featx.explain.rectifiers import deconvolved, guided, with_other_relus
from featx.explain.subject import LOGITS, Subject
from featx.options.show import BASELINES, SALIENCY_METHODS

METHODS = SALIENCY_METHODS
_AT_ONCE = 16  # inputs in a forward and backward pass


@dataclass(frozen=True)
class Saliency:
    """What one method says of N images.

    Attributes:
        maps: (N, S, S) float32; 0 where a pixel does not matter. Never negative, but of "integrated", whose sign says
            for or against the class.
        signed: (N, 3, S, S) before it was reduced to one value a pixel; None of "gradcam".
        completeness: (N,) of "integrated": |sum - (S_c(x) - S_c(baseline))|, as a share of the difference; else None.
    """

    method: str
    maps: Tensor
    signed: Tensor | None = None
    completeness: Tensor | None = None


def saliency(
    subject: Subject,
    inputs: Tensor,
    classes: Tensor,
    method: str,
    *,
    samples: int = 50,
    noise: float = 0.15,
    steps: int = 50,
    baseline: str = "black",
    seed: int = 0,
) -> Saliency:
    """One method for images and a class for each.

    Args:
        inputs: (N, 3, S, S) normalised.
        classes: (N,) indices.
        samples, noise, seed: of "smoothgrad": how many noisy copies, and their deviation as a share of the range of
            an input's values.
        steps: of "integrated".
        baseline: of "integrated", where nothing is seen: "black", or "mean", the mean colour of the training images.

    Raises:
        UsageError: an unknown method; "gradcam" for a network without maps.
    """
    if method not in METHODS:
        raise UsageError(f"--method is {method!r}; it can be {', '.join(METHODS)}")
    if method == "gradient":
        return _largest(method, input_gradient(subject.network, inputs, classes))
    if method == "guided":
        return _largest(method, input_gradient(with_other_relus(subject.network, guided), inputs, classes))
    if method == "deconvnet":
        return _largest(method, input_gradient(with_other_relus(subject.network, deconvolved), inputs, classes))
    if method == "smoothgrad":
        return _largest(method, _smooth(subject.network, inputs, classes, samples, noise, seed))
    if method == "integrated":
        return _integrated(subject, inputs, classes, steps, baseline)
    return Saliency(method, _grad_cam(subject, inputs, classes))


def input_gradient(network: fx.GraphModule, inputs: Tensor, classes: Tensor) -> Tensor:
    """(N, 3, S, S): the gradient of each image's own class score with respect to its pixels.

    Source:
        Simonyan, Vedaldi & Zisserman, Deep inside convolutional networks, ICLR workshop 2014, section 3.
    """
    parts = []
    for start in range(0, len(inputs), _AT_ONCE):
        part = inputs[start : start + _AT_ONCE].detach().clone().requires_grad_()
        scores = network(part)[LOGITS].gather(1, classes[start : start + _AT_ONCE, None])
        parts.append(torch.autograd.grad(scores.sum(), part)[0])
    return torch.cat(parts)


def _largest(method: str, signed: Tensor) -> Saliency:
    """The largest absolute value over the colours, as in Simonyan et al."""
    return Saliency(method, signed.abs().amax(1), signed)


def _smooth(
    network: fx.GraphModule, inputs: Tensor, classes: Tensor, samples: int, noise: float, seed: int
) -> Tensor:
    """The mean gradient at noisy copies of each image.

    Source:
        Smilkov et al., SmoothGrad: removing noise by adding noise, 2017. The absolute value is taken after the mean.
    """
    found = []
    for image, label in zip(inputs, classes, strict=True):
        generator = torch.Generator().manual_seed(seed)  # an image's map does not depend on those before it
        deviation = noise * float(image.max() - image.min())
        drawn = torch.randn((samples, *image.shape), generator=generator).to(inputs.device)
        gradients = input_gradient(network, image[None] + deviation * drawn, label.repeat(samples))
        found.append(gradients.mean(0))
    return torch.stack(found)


def _integrated(subject: Subject, inputs: Tensor, classes: Tensor, steps: int, baseline: str) -> Saliency:
    """The gradient along the straight way from a baseline, times that way: its parts add up to the score's change.

    Source:
        Sundararajan, Taly & Yan, Axiomatic attribution for deep networks, ICML 2017; midpoint rule.
    """
    if baseline not in BASELINES:
        raise UsageError(f"--baseline is {baseline!r}; it can be {' or '.join(BASELINES)}")
    nothing = torch.zeros_like(inputs[:1])  # the mean colour, after normalisation
    if baseline == "black":
        nothing = subject.normalised(np.zeros((1, subject.side, subject.side, 3), np.uint8))
    nothing = nothing.to(inputs.dtype)
    places = (torch.arange(steps, device=inputs.device, dtype=inputs.dtype) + 0.5) / steps
    signed, missing = [], []
    for image, label in zip(inputs, classes, strict=True):
        way = image[None] - nothing
        points = nothing + places[:, None, None, None] * way
        parts = way[0] * input_gradient(subject.network, points, label.repeat(steps)).mean(0)
        ends = subject.logits(torch.cat([image[None], nothing]))[:, label]
        difference = ends[0] - ends[1]
        signed.append(parts)
        missing.append((parts.double().sum() - difference).abs() / difference.abs().clamp_min(1e-12))
    values = torch.stack(signed)
    return Saliency("integrated", values.sum(1), values, torch.stack(missing))


def _grad_cam(subject: Subject, inputs: Tensor, classes: Tensor) -> Tensor:
    """The last maps, each weighted by the mean of its gradient, rectified, brought to the size of the image.

    Source:
        Selvaraju et al., Grad-CAM, ICCV 2017.
    """
    layer = last_maps(subject)
    found = []
    for start in range(0, len(inputs), _AT_ONCE):
        part = inputs[start : start + _AT_ONCE].detach().clone().requires_grad_()
        outputs = subject.network(part)
        scores = outputs[LOGITS].gather(1, classes[start : start + _AT_ONCE, None])
        maps = outputs[layer]
        weights = torch.autograd.grad(scores.sum(), maps)[0].mean((2, 3), keepdim=True)
        small = (weights * maps).sum(1, keepdim=True).clamp_min(0)
        found.append(F.interpolate(small, size=inputs.shape[2:], mode="bilinear", align_corners=False)[:, 0])
    return torch.cat(found).detach()


def last_maps(subject: Subject) -> str:
    """The last of the layers the subject was loaded with that is (C, H, W) maps; UsageError if there is none."""
    for layer in reversed(subject.recipe.layers):
        if len(subject.recipe.backbone.geometry_of(layer).shape) == _MAPS and layer.name != LOGITS:
            return layer.name
    raise UsageError("gradcam needs a layer of maps; name one with -l, as conv5 or layer4")


_MAPS = 3
