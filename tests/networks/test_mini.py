"""featx's own small networks, their names, their weights, and `featx weights`."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from conftest import SHARED
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms._presets import ImageClassification

from featx.commands.extract import extract_features
from featx.networks.architectures.mini import NAMES as MINI_NAMES
from featx.networks.backbone import Backbone
from featx.networks.build import construct
from featx.networks.load import load_network
from featx.networks.weights import weights_of
from featx.options.extraction import ExtractConfig
from featx.store.open import open_features


@pytest.mark.parametrize("name", MINI_NAMES)
def test_a_mini_has_the_layers_of_its_family_under_their_names(name):
    network, layers = construct(name, seed=0), Backbone(name).names.main
    convolutions = [layer for layer in layers if layer.name.startswith("conv")]
    if name == "alexnet-mini":
        expected = "conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool5 fc6 fc7 fc8"
    else:
        blocks = [f"conv{b}_1 conv{b}_2 pool{b}" for b in range(2, 6)]
        expected = f"conv1_1 pool1 {' '.join(blocks)} fc6 fc7 fc8"
    assert [layer.name for layer in layers] == expected.split()
    # Each convolution's layer is what comes out of the ReLU behind its BatchNorm.
    pixels = torch.rand(2, 3, 64, 64)
    activations, found = pixels, []
    with torch.inference_mode():
        for module in network.features:
            activations = module(activations.clone())
            if isinstance(module, torch.nn.ReLU):
                found.append(activations)
        captured = load_network(name, weights_of(name, "random:0")).capture(convolutions)(pixels)
        assert network(pixels).shape == (2, 200)
    for layer, values in zip(convolutions, found, strict=True):
        torch.testing.assert_close(captured[layer.name], values)
    parameters = sum(p.numel() for p in network.parameters())
    assert 2 * parameters < 8e6  # bytes as float16


@pytest.mark.parametrize("name", MINI_NAMES)
def test_shipped_weights_are_small_finite_and_fit(name):
    path = weights_of(name, "default").file
    if not path.is_file():
        pytest.skip(f"{name} has no weights yet")
    assert path.stat().st_size <= 8e6
    loaded = load_network(name, weights_of(name, "default"))
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    assert all(bool(torch.isfinite(p).all()) for p in loaded.network.parameters())
    assert path.with_suffix(".md").is_file()
    assert path.with_suffix(".png").is_file()


@pytest.mark.parametrize("name", MINI_NAMES)
def test_shipped_weights_know_the_photographs_they_have_not_seen(name, tmp_path):
    archive = SHARED / "tiny-imagenet" / "val.zip"
    if not archive.is_file() or not weights_of(name, "default").file.is_file():
        pytest.skip(f"the real images are not on this machine, or {name} has no weights yet")
    with zipfile.ZipFile(archive) as photos:
        names = sorted(member for member in photos.namelist() if member.endswith(".webp"))
        classes = sorted({member.split("/")[1] for member in names})
        chosen = sorted({n for c in classes for n in [m for m in names if m.split("/")[1] == c][:2]})
        photos.extractall(tmp_path, chosen)
    config = ExtractConfig(backbone=name, layers="fc8", device="cpu")
    extract_features(tmp_path / "val", tmp_path / "f.h5", config)
    features = open_features(tmp_path / "f.h5")
    assert len(features) == 400
    right = features["fc8"].argmax(axis=1) == features.labels  # both count the classes in the order of their names
    assert right.mean() > 0.42, "the model cards say half of them"
    network = construct(name, seed=0)  # and once by PyTorch and torchvision alone
    state = load_file(weights_of(name, "default").file)
    network.load_state_dict({**network.state_dict(), **{k: v.float() for k, v in state.items()}})
    transform = ImageClassification(crop_size=64, resize_size=64)
    pixels = torch.stack(
        [transform(Image.open(tmp_path / "val" / path).convert("RGB")) for path in features.paths[:8]]
    )
    with torch.inference_mode():
        expected = network.eval()(pixels).numpy()
    assert abs(features["fc8"][:8] - expected).max() <= 1e-5 * abs(expected).max()


def test_weights_are_listed_where_they_are(featx, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "alexnet-owt-7be5be79.pth").write_bytes(b"12345")
    rows = {row["backbone"]: row for row in featx("weights", "--json").json["rows"]}
    assert rows["alexnet"]["where"] == "cached"
    assert rows["alexnet"]["bytes"] == 5
    assert rows["vgg16"]["where"] == "downloadable"
    assert rows["vgg16"]["path"].startswith("https://download.pytorch.org/models/vgg16-")
    for name in MINI_NAMES:
        assert (name in rows) == weights_of(name, "default").file.is_file()
    assert "to be downloaded when needed" in featx("weights").out
    assert featx("weights", "fetch").status == 2
    assert "no network 'alexnett'" in featx("weights", "fetch", "alexnett").err


def test_weights_are_fetched_from_a_mirror_and_checked(featx, tmp_path, monkeypatch):
    """The download itself is tested in test_weights; here, that the command reaches it for every name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "alexnet-owt-7be5be79.pth").write_bytes(b"not what its name promises")
    said = featx("weights", "fetch", "alexnet")
    assert said.status == 4
    assert "expected 7be5be79" in said.err


def test_a_minis_weights_are_its_own_or_a_file(featx, tmp_path):
    said = featx("extract", tmp_path, "-b", "alexnet-mini", "-w", "IMAGENET1K_V1", "-o", tmp_path / "f.h5")
    assert said.status == 2
    described = json.loads(featx("layers", "alexnet-mini", "--json").out)
    assert described["layers"][0]["name"] == "conv1"
