"""A network's dense form is its linear layers at every position, one by one, and their mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import write_photo
from PIL import Image
from torchvision import transforms as T

import featx
from featx.errors import UsageError
from featx.networks.backbone import Backbone
from featx.networks.build import construct
from featx.networks.load import load_network
from featx.networks.weights import weights_of


def test_every_position_is_the_plain_network_on_the_maps_there():
    plain = load_network("alexnet-mini", weights_of("alexnet-mini", "default")).network
    dense = load_network("alexnet-mini-dense", weights_of("alexnet-mini-dense", "default")).network
    images = torch.randn(2, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = plain.features(images)
        assert maps.shape[2:] == (8, 6)
        expected = torch.stack([
            torch.stack([plain.classifier(maps[:, :, i : i + 4, j : j + 4].flatten(1)) for j in range(3)], -1)
            for i in range(5)
        ], -2)  # fmt: skip
        torch.testing.assert_close(dense.classifier(dense.features(images)), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(dense(images), expected.mean((2, 3)), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(dense(images[:, :, :64, :64]), plain(images[:, :, :64, :64]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["alexnet", "vgg11", "vgg13_bn", "zfnet", "caffenet", "alexnet-mini", "alexnet-without-conv3"]
)
def test_the_weights_are_the_networks_own(name):
    plain, dense = construct(name), construct(f"{name}-dense")
    assert {n: t.shape for n, t in plain.state_dict().items()} == {n: t.shape for n, t in dense.state_dict().items()}
    side = Backbone(name).side
    assert dense(torch.empty(1, 3, side, side, device="meta")).shape == (1, 1000 if "mini" not in name else 200)


def test_layers_are_averaged_and_no_image_depends_on_others(tmp_path):
    for index in range(5):
        write_photo(tmp_path / "photos" / f"{index}.jpg", index, (90 + index, 80))
    layers = ["conv5", "fc6", "fc7", "fc8", "prob"]
    featx.extract_features(
        tmp_path / "photos",
        tmp_path / "f.h5",
        featx.ExtractConfig(backbone="alexnet-mini", layers=layers, dense=96, device="cpu"),
    )
    found = featx.open_features(tmp_path / "f.h5")
    assert {layer: found[layer].shape[1:] for layer in layers}["fc6"] == (384,)
    assert (found.provenance["backbone"], found.provenance["preprocess"]["resize"]) == ("alexnet-mini-dense", 96)
    assert "--dense 96" in found.provenance["command"]
    assert featx.verify_file(tmp_path / "f.h5").passed
    np.testing.assert_allclose(found["prob"].sum(1), 1, atol=1e-5)
    plain = load_network("alexnet-mini", weights_of("alexnet-mini", "default")).network
    with Image.open(tmp_path / "photos" / found.paths[3]) as image, torch.no_grad():
        cut = T.Compose([T.Resize(96), T.CenterCrop(96), T.ToTensor()])(image.convert("RGB"))
        how = found.provenance["preprocess"]
        maps = plain.features(T.Normalize(how["mean"], how["std"])(cut)[None])
        windows = [maps[:, :, i : i + 4, j : j + 4].flatten(1) for i in range(3) for j in range(3)]
        fc6 = torch.stack([plain.classifier[:4](window) for window in windows]).mean(0)
    np.testing.assert_allclose(found["fc6"][3], fc6[0].numpy(), atol=1e-4)
    with featx.Extractor("alexnet-mini", layers, dense=96, device="cpu") as extractor:
        alone = extractor(tmp_path / "photos" / found.paths[3])
    assert all(np.array_equal(alone[layer][0], found[layer][3]) for layer in layers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18-dense", "resnet18 has none"),
        ("lenet5-rbf-dense", "classifier.output is a Rbf"),
        ("nothing-dense", "no network"),
    ],
)
def test_networks_without_a_dense_form_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        Backbone(name)


def test_a_dense_form_is_not_trained(tmp_path):
    for index in range(6):
        write_photo(tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg", index)
    with pytest.raises(UsageError, match="train the network"):
        featx.finetune_network(
            tmp_path / "photos", tmp_path / "run", featx.FinetuneConfig(backbone="alexnet-mini-dense", device="cpu")
        )
    with pytest.raises(UsageError, match="--dense 96 says the size"):
        featx.Extractor("alexnet-mini", dense=96, crop=64).load()
