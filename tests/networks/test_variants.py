"""Layers taken out and widened, against networks built by hand; lesions against hooks; as a user runs them."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import write_photo
from torch import nn

import featx
from featx.errors import UnknownBackbone, UsageError
from featx.networks.backbone import Backbone
from featx.networks.build import construct
from featx.networks.lesion import parse_lesion, silence
from featx.networks.registry import literature_layers
from featx.runtime.progress import Reporter


def count(name):
    return sum(parameter.numel() for parameter in construct(name).parameters())


def test_parameters_of_zeilers_table_3_are_counted_by_hand():
    convolutions = {"conv1": 3 * 64 * 121 + 64, "conv2": 64 * 192 * 25 + 192, "conv3": 192 * 384 * 9 + 384,
                    "conv4": 384 * 256 * 9 + 256, "conv5": 256 * 256 * 9 + 256}  # fmt: skip
    fc6, fc7, fc8 = 9216 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 1000 + 1000
    whole = sum(convolutions.values()) + fc6 + fc7 + fc8
    assert count("alexnet") == whole
    shallow = convolutions["conv1"] + convolutions["conv2"] + 192 * 256 * 9 + 256
    assert count("alexnet-without-conv3-conv4") == shallow + fc6 + fc7 + fc8
    assert count("alexnet-without-fc7") == whole - fc7
    short = 9216 * 1000 + 1000
    assert count("alexnet-without-fc6-fc7") == sum(convolutions.values()) + short
    assert count("alexnet-without-conv3-conv4-fc6-fc7") == shallow + short
    wide = 9216 * 8192 + 8192 + 8192 * 8192 + 8192 + 8192 * 1000 + 1000
    assert count("alexnet-widen-fc6x2-fc7x2") == sum(convolutions.values()) + wide
    assert count("alexnet-widen-conv3x1.5") == whole + (192 * 192 * 9 + 192) + 192 * 256 * 9


@pytest.mark.parametrize(
    "name",
    [
        "alexnet-mini-without-conv5",
        "alexnet-mini-without-conv1-fc6",
        "vgg-mini-without-conv3_1-conv3_2-widen-fc7x0.5",
    ],
)
def test_a_variant_is_a_network_like_any_other(name):
    network = construct(name, 0)
    backbone = Backbone(name)
    names = [layer.name for layer in backbone.names.main]
    gone = name.partition("-without-")[2].partition("-widen-")[0].split("-")
    base = [layer.name for layer in Backbone(name.partition("-without-")[0]).names.main]
    assert names == [one for one in base if one not in gone]
    with torch.no_grad():
        values = network(torch.randn(2, 3, 64, 64))
    assert values.shape == (2, 200)
    assert all(
        layer.before_relu is None or network.get_submodule(layer.before_relu) for layer in literature_layers(network)
    )


def test_what_is_left_computes_what_it_did():
    """Without conv3, a network by hand from the same modules gives the same values."""
    whole, part = construct("alexnet-mini", 3), construct("alexnet-mini-without-fc7", 3)
    part.load_state_dict({name: value for name, value in whole.state_dict().items() if name in part.state_dict()})
    by_hand = nn.Sequential(
        whole.features, nn.Flatten(), *[whole.classifier[index] for index in range(4)], whole.classifier[-1]
    )
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(part(inputs), by_hand.eval()(inputs))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("alexnet-without-conv9", "has no layer conv9"),
        ("alexnet-without-fc8", "makes the scores"),
        ("alexnet-widen-fc6", "write it as fc6x2"),
        ("alexnet-without-fc6-widen-fc6x2", "cannot be both"),
        ("alexnet-without-conv1-conv2-conv3-conv4-conv5", "has no maps"),
        ("alexnet-without-pool1", "has no layer pool1"),
        ("resnet18-without-layer1", "layers can be taken out of AlexNet, VGG"),
    ],
)
def test_what_cannot_be_varied_is_said(name, reason):
    with pytest.raises(UsageError, match=reason):
        construct(name)


def test_a_variant_of_nothing_is_unknown():
    with pytest.raises(UnknownBackbone):
        construct("alexnot-without-conv3")
    with pytest.raises(UsageError, match="has no published weights"):
        featx.Extractor("alexnet-without-conv3").load()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    for seed in range(24):
        write_photo(folder / "photos" / "ab"[seed % 2] / f"{seed:02d}.png", seed, (64, 64))
    config = featx.FinetuneConfig(
        backbone="alexnet-mini", without="conv3,conv4", widen="fc7x0.5", from_scratch=True, epochs=1, val=0.0, batch_size=8,
    )  # fmt: skip
    said = []

    class Says(Reporter):
        def note(self, line):
            said.append(line)

    featx.finetune_network(folder / "photos", folder / "run", config, reporter=Says())
    assert any(line.startswith("features.8: taken out") for line in said)
    again = featx.finetune_network(folder / "photos", folder / "run", config)
    assert again.backbone == "alexnet-mini-without-conv3-conv4-widen-fc7x0.5"
    return folder


def test_a_variant_is_trained_and_used(run, tmp_path, featx):
    done = featx("extract", run / "photos", "-b", run / "run", "-l", "conv5,fc7", "-o", tmp_path / "x.h5")
    assert done.status == 0, done.err
    assert "(192,)" in done.out
    assert featx("verify", tmp_path / "x.h5", "--rows", "3").status == 0
    done = featx("finetune", run / "photos", "-b", "alexnet-mini", "--without", "conv3", "-o", tmp_path / "no")
    assert done.status == 2
    assert "needs --from-scratch" in done.err


def test_lesions(run, tmp_path, featx):
    done = featx("evaluate", run / "run", run / "photos", "--lesion", "conv2=0.5,fc6", "-o", tmp_path / "e.json")
    assert done.status == 0, done.err
    assert str(run / "run") in done.out
    assert "--lesion conv2=0.5,fc6: it is not the network as it was trained" in done.out
    kept = json.loads((tmp_path / "e.json").read_text())["report"]
    assert (kept["head"], kept["lesion"]) == (str(run / "run"), "conv2=0.5,fc6")
    whole = featx("evaluate", run / "run", run / "photos", "-o", tmp_path / "e.json")
    assert whole.status == 4  # another evaluation is there
    for given, reason in (("conv9", "no such layer to silence"), ("fc8", "no such layer"), ("conv1=2", "it can be conv3=0.5"),
                          ("", "it can be")):  # fmt: skip
        done = featx("evaluate", run / "run", run / "photos", "--lesion", given)
        assert (done.status, reason in done.err) == (2, True), done.err


@pytest.mark.parametrize("name", ["alexnet-mini", "alexnet"])
def test_silent_units_are_zero_and_the_others_as_before(name):
    network = construct(name, 0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.bias.normal_()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    silence(network, state, parse_lesion("conv2=0.25,fc6"), 1)
    silent = construct(name, 1)
    silent.load_state_dict(state)
    layers = {layer.name: layer.node for layer in literature_layers(network)}
    seen = {}

    def keep(which, layer):
        return lambda _m, _i, output: seen.__setitem__((which, layer), output.clone())

    for which, one in (("whole", network), ("silent", silent)):
        for layer in ("conv1", "conv2", "fc6"):
            one.get_submodule(layers[layer]).register_forward_hook(keep(which, layer))
        with torch.no_grad():
            one(torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(seen["whole", "conv1"], seen["silent", "conv1"])
    gone = (seen["silent", "conv2"] == 0).all(dim=(0)).flatten(1).all(1)
    channels = seen["whole", "conv2"].shape[1]
    changed = (seen["silent", "conv2"] != seen["whole", "conv2"]).flatten(2).any(2).any(0)
    assert int(changed.sum()) <= channels // 4 <= int(gone.sum())
    assert (~changed[~gone]).all()
    assert (seen["silent", "fc6"] == 0).all()
    assert (seen["whole", "fc6"] != 0).any()
