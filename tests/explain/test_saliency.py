"""Every method against an independent computation: captum, finite differences, an explicit walk backwards."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED
from safetensors.torch import load_file
from torch import nn

from featx.errors import UsageError
from featx.explain.rectifiers import relus
from featx.explain.saliency import input_gradient, saliency
from featx.explain.subject import LOGITS, load_subject
from featx.networks.build import construct

WEIGHTS = SHARED / "squeezenet" / "squeezenet1_0.safetensors"


@pytest.fixture(scope="module", params=["alexnet-mini", "vgg-mini", "squeezenet"])
def subject(request):
    if request.param != "squeezenet":
        return load_subject(request.param, "conv5" if request.param == "alexnet-mini" else "conv5_2", device="cpu")
    if not WEIGHTS.exists():
        pytest.skip("the real weights are not on this machine")
    return load_subject("squeezenet1_0", "features.12", weights=str(WEIGHTS), device="cpu")


@pytest.fixture(scope="module")
def inputs(subject):
    """Two smooth pictures, and the class that each is taken for."""
    coarse = torch.rand((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(coarse, size=subject.side, mode="bicubic").clamp(0, 1) * 255
    found = subject.normalised(pixels.round().byte().permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        return found, subject.logits(found).argmax(1)


class Scores(nn.Module):
    """What captum asks for: a network that gives scores; its ReLUs are modules."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)[LOGITS]


def close(one, other, tolerance=2e-6):
    assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def test_the_gradient(subject, inputs):
    images, classes = inputs
    found = saliency(subject, images, classes, "gradient")
    right = captum.attr.Saliency(Scores(subject.network)).attribute(
        images.clone().requires_grad_(), target=classes, abs=False
    )
    close(found.signed, right)
    assert torch.equal(found.maps, found.signed.abs().amax(1))


def test_the_gradient_is_that_of_finite_differences(subject, inputs):
    images, classes = inputs
    doubled = subject.network.double()
    try:
        # Flat parts are ties of max pooling, at which there is no gradient.
        exact = images.double() + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
        found = input_gradient(doubled, exact, classes)
        generator = torch.Generator().manual_seed(1)
        direction = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ends = [
                doubled(exact + step * direction)[LOGITS].gather(1, classes[:, None])[:, 0] for step in (1e-9, -1e-9)
            ]
        right = (ends[0] - ends[1]) / 2e-9
        close((found * direction).sum((1, 2, 3)), right, 1e-3)
    finally:
        subject.network.float()


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@pytest.mark.parametrize("method", ["guided", "deconvnet"])
def test_rectified_backward_signals(subject, inputs, method):
    images, classes = inputs
    found = saliency(subject, images, classes, method)
    oracle = captum.attr.GuidedBackprop if method == "guided" else captum.attr.Deconvolution
    right = oracle(Scores(subject.network)).attribute(images.clone().requires_grad_(), target=classes)
    close(found.signed, right)
    assert len(relus(subject.network)) > 4


def test_the_deconvnet_is_unpooling_rectification_and_transposed_filters():
    """Zeiler & Fergus' own description, walked by hand through a chain of modules with overlapping pooling."""
    torch.manual_seed(0)
    subject = load_subject("alexnet", weights="random:0", device="cpu", crop=95, resize=95)
    image = torch.randn((1, 3, 95, 95))
    label = torch.tensor([3])
    found = saliency(subject, image, label, "deconvnet").signed
    network = construct("alexnet", 0).eval()
    trail, values = [], image
    with torch.no_grad():
        for module in network.features:
            before = values
            switches = None
            if isinstance(module, nn.MaxPool2d):
                values, switches = F.max_pool2d(values, 3, 2, return_indices=True)
            else:
                values = nn.ReLU()(values) if isinstance(module, nn.ReLU) else module(values)
            trail.append((module, before.shape, switches))
        pooled = network.avgpool(values)
        hidden = [pooled.flatten(1)]
        linear = [module for module in network.classifier if isinstance(module, nn.Linear)]
        signal = torch.zeros(1, linear[-1].out_features)
        signal[0, 3] = 1
        for module in reversed(linear):
            signal = signal @ module.weight
            if module is not linear[0]:
                signal = signal.clamp_min(0)
        signal = signal.view_as(pooled)
    spread = values.detach().requires_grad_()
    signal = torch.autograd.grad(network.avgpool(spread), spread, signal)[0]
    with torch.no_grad():
        for module, shape, switches in reversed(trail):
            if isinstance(module, nn.ReLU):
                signal = signal.clamp_min(0)
            elif isinstance(module, nn.MaxPool2d):
                flat = torch.zeros(shape).flatten(2)
                flat.scatter_add_(
                    2, switches.flatten(2), signal.flatten(2)
                )  # windows overlap: shared switches add up
                signal = flat.view(shape)
            elif isinstance(module, nn.Conv2d):
                left = shape[2] - (
                    (signal.shape[2] - 1) * module.stride[0] - 2 * module.padding[0] + module.kernel_size[0]
                )
                signal = F.conv_transpose2d(
                    signal, module.weight, stride=module.stride, padding=module.padding, output_padding=left
                )
    assert len(hidden) == 1
    close(found, signal)


def test_integrated_gradients(subject, inputs):
    subject.network.double()  # in float32 the rounding of a block can decide at a kink
    try:
        compare_integrated(subject, inputs[0][:1].double(), inputs[1][:1])
    finally:
        subject.network.float()


def compare_integrated(subject, images, classes):
    for baseline in ("black", "mean"):
        found = saliency(subject, images, classes, "integrated", steps=6, baseline=baseline)
        nothing = torch.zeros_like(images)
        if baseline == "black":
            nothing = subject.normalised(np.zeros((1, subject.side, subject.side, 3), np.uint8)).double()
        gradients = torch.zeros_like(images)
        for step in range(6):
            point = (nothing + (step + 0.5) / 6 * (images - nothing)).requires_grad_()
            subject.logits(point).gather(1, classes[:, None]).sum().backward()
            gradients += point.grad / 6
        close(found.signed, (images - nothing) * gradients, 1e-9)
        right = captum.attr.IntegratedGradients(Scores(subject.network)).attribute(
            images, nothing, target=classes, n_steps=6, method="riemann_middle"
        )
        # captum's steps are float32, which decides at some kinks: few pixels, the whole agrees.
        assert float((found.signed - right).norm() / right.norm()) < 1e-2
        with torch.no_grad():
            ends = [subject.logits(part).gather(1, classes[:, None])[:, 0] for part in (images, nothing)]
        missing = ((found.signed.sum((1, 2, 3)) - (ends[0] - ends[1])) / (ends[0] - ends[1])).abs()
        torch.testing.assert_close(found.completeness, missing, rtol=1e-6, atol=1e-9)
    finer = saliency(subject, images, classes, "integrated", steps=60, baseline="mean")
    assert float(finer.completeness.max()) < float(found.completeness.max())


def test_smoothgrad_is_the_mean_of_gradients_and_not_of_their_sizes(subject, inputs):
    images, classes = inputs[0][:1].double(), inputs[1][:1]
    subject.network.double()  # in float32 the rounding of a block can decide at a kink
    try:
        found = saliency(subject, images, classes, "smoothgrad", samples=5, noise=0.1, seed=3)
        drawn = torch.randn((5, *images[0].shape), generator=torch.Generator().manual_seed(3))
        deviation = 0.1 * float(images[0].max() - images[0].min())
        gradients = []
        for one in drawn:
            noisy = (images[0] + deviation * one)[None].requires_grad_()
            subject.logits(noisy)[0, classes[0]].backward()
            gradients.append(noisy.grad[0])
        close(found.signed[0], torch.stack(gradients).mean(0), 1e-9)
        again = saliency(subject, images, classes, "smoothgrad", samples=5, noise=0.1, seed=3)
        assert torch.equal(found.maps, again.maps)
    finally:
        subject.network.float()


def test_grad_cam(subject, inputs):
    images, classes = inputs
    found = saliency(subject, images, classes, "gradcam")
    layer = next(one for one in subject.recipe.layers if one.name != LOGITS)
    if layer.name == "features.12":  # a concatenation, no module of the traced network: torchvision's own
        scores = construct("squeezenet1_0", 0)
        scores.load_state_dict(load_file(WEIGHTS))
        module = scores.eval().features[12]
        for relu in (one for one in scores.modules() if isinstance(one, nn.ReLU)):
            relu.inplace = False
    else:
        scores, module = Scores(subject.network), subject.network.get_submodule(layer.node)
    oracle = captum.attr.LayerGradCam(scores, module)
    right = oracle.attribute(images.clone().requires_grad_(), target=classes, relu_attributions=True)
    right = F.interpolate(right, size=subject.side, mode="bilinear", align_corners=False)[:, 0]
    close(found.maps, right.detach())


def test_maps_depend_on_trained_weights():
    """Adebayo et al., Sanity checks for saliency maps, 2018: Grad-CAM's map is another one once weights are random."""
    if not WEIGHTS.exists():
        pytest.skip("the real weights are not on this machine")
    trained = load_subject("squeezenet1_0", "features.12", weights=str(WEIGHTS), device="cpu")
    drawn = load_subject("squeezenet1_0", "features.12", weights="random:0", device="cpu")
    photos = sorted((SHARED / "imagenet-sample").glob("*.JPEG"))[:6]
    images = trained.normalised(trained.pixels(photos))
    with torch.no_grad():
        classes = trained.logits(images).argmax(1)
    from scipy.stats import spearmanr

    one, other = (saliency(s, images, classes, "gradcam").maps.flatten(1).numpy() for s in (trained, drawn))
    assert all(a.std() > 0 for a in one)
    alike = [abs(spearmanr(a, b).statistic) if b.std() > 0 else 0.0 for a, b in zip(one, other, strict=True)]
    assert np.mean(alike) < 0.5


def test_what_cannot_be_asked_is_said(subject, inputs):
    images, classes = inputs
    with pytest.raises(UsageError, match="--method is 'magic'"):
        saliency(subject, images, classes, "magic")
    with pytest.raises(UsageError, match="--baseline is 'white'"):
        saliency(subject, images, classes, "integrated", baseline="white")
    with pytest.raises(UsageError, match="has no class 'unicorn'"):
        subject.class_index("unicorn")
    vectors = load_subject("alexnet-mini", "fc7", device="cpu")
    with pytest.raises(UsageError, match="needs a layer of maps"):
        saliency(vectors, torch.zeros(1, 3, 64, 64), torch.tensor([0]), "gradcam")
