"""Rates per layer: what a specification means, and what frozen does to a network."""

from __future__ import annotations

import pytest
from torch import nn

from featx.errors import UnknownLayer, UsageError
from featx.networks.build import auxiliary_layers, construct, final_layer, replace_final_layer
from featx.networks.registry import backbone_names
from featx.options.training import FinetuneConfig
from featx.training.layer_groups import layer_groups
from featx.training.learning_rates import (
    apply_modes,
    assign_rates,
    expand_policy,
    rate_table,
    trained_auxiliary_heads,
)
from featx.training.optimization.optimizer import make_optimiser


@pytest.fixture(scope="module")
def alexnet():
    return construct("alexnet")


@pytest.fixture(scope="module")
def vgg():
    return construct("vgg11_bn")


def by_layer(spec, network):
    """layer -> {leaf name: (rate, epoch, decay)}"""
    found = {}
    for rate in assign_rates(spec, network):
        found.setdefault(rate.layer, {})[rate.parameter] = (rate.rate, rate.epoch, rate.decay)
    return found


def rates_of(spec, network):
    """layer -> the one rate of all its parameters."""
    found = {layer: {rate for rate, _, _ in of.values()} for layer, of in by_layer(spec, network).items()}
    assert all(len(rates) == 1 for rates in found.values())
    return {layer: rates.pop() for layer, rates in found.items()}


@pytest.mark.parametrize("name", backbone_names())
def test_every_parameter_of_every_network_is_in_exactly_one_layer(name):
    network = construct(name)
    groups = layer_groups(network)
    parameters = [parameter for group in groups for parameter in group.parameters]
    assert sorted(parameters) == sorted(dict(network.named_parameters()))
    assert len({group.name for group in groups}) == len(groups) >= (5 if "mnist" not in name else 3)
    assert all(rate.rate == 2.0 for rate in assign_rates("*=2", network))
    before, final = {n: p.shape for n, p in network.named_parameters()}, final_layer(network)
    replace_final_layer(network, 7)
    if name == "lenet5-rbf":  # its outputs are distances to codes that are not learned
        assert network.get_submodule(final).out_features == 7
        return
    assert final_layer(network) == final
    assert next(network.get_submodule(final).parameters()).shape[0] == 7
    different = [n for n, p in network.named_parameters() if before.get(n) != p.shape]
    replaced = [final, *auxiliary_layers(network).values()]
    assert set(different) == {f"{layer}.{kind}" for layer in replaced for kind in ("weight", "bias")}


def test_the_readmes_example_means_what_it_says(alexnet):
    found = rates_of("conv1-conv3=0, conv4-conv5=1e-4, fc6-fc7=1e-3, fc8=1e-2", alexnet)
    conv = dict.fromkeys(("conv1", "conv2", "conv3"), 0.0) | {"conv4": 1e-4, "conv5": 1e-4}
    assert found == conv | {"fc6": 1e-3, "fc7": 1e-3, "fc8": 1e-2}


def test_later_entries_win_and_names_globs_and_leaves_reach_what_they_name(vgg):
    found = by_layer("*=1, conv2_*=0.5, conv3_2=0, features.0=7, fc7.bias=3, *.bias=x2/wd0, conv1_1=/wd0.25", vgg)
    assert found["conv1_1"] == {
        "features.0.weight": (7.0, 0, 0.25), "features.0.bias": (14.0, 0, 0.25),
        "features.1.weight": (1.0, 0, 0.25), "features.1.bias": (2.0, 0, 0.25),
    }  # fmt: skip
    assert found["conv2_1"]["features.4.weight"] == (0.5, 0, None)
    assert found["conv2_1"]["features.4.bias"] == (1.0, 0, 0.0)
    assert {rate for rate, _, _ in found["conv3_2"].values()} == {0.0}
    assert found["fc7"] == {"classifier.3.weight": (1.0, 0, None), "classifier.3.bias": (6.0, 0, 0.0)}
    assert by_layer("*=1, fc6=2@3", vgg)["fc6"]["classifier.0.weight"] == (2.0, 3, None)
    assert by_layer("*=1@3, fc6=2", vgg)["fc6"]["classifier.0.weight"] == (2.0, 0, None)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("conv9=1, *=0", UnknownLayer, r"no layer 'conv9'. Nearest: 'conv.*The layers are conv1, conv2"),
        ("fc8=0.01", UsageError, r"gives no rate to conv1, conv2.*put \*=0 first"),
        ("fc8-fc6=1, *=0", UnknownLayer, "runs backwards; write fc6-fc8"),
        ("*=fast", UsageError, r"'\*=fast' is not LAYERS=RATE"),
        ("*=-1", UsageError, "is not LAYERS=RATE"),
        ("*=", UsageError, "is not LAYERS=RATE"),
        ("=1", UsageError, "is not LAYERS=RATE"),
        ("*=1.2.3", UsageError, "is not LAYERS=RATE"),
        ("*.bias=x2, *=1", UsageError, "multiplies a rate that no earlier entry gives"),
        ("*=/wd0", UsageError, "gives no rate to conv1"),
    ],
)
def test_a_specification_that_cannot_be_meant_is_refused(alexnet, spec, error, words):
    with pytest.raises(error, match=words):
        assign_rates(spec, alexnet)


def test_policies_stand_for_specifications(alexnet):
    def rates(policy, images=5000):
        return rates_of(expand_policy(policy, alexnet, images), alexnet)

    frozen = dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5"), 0.0)
    assert rates("head") == frozen | {"fc6": 0, "fc7": 0, "fc8": 0.01} == rates("auto", images=1999)
    assert rates("fc") == frozen | {"fc6": 1e-3, "fc7": 1e-3, "fc8": 0.01}
    assert rates("all") == dict.fromkeys([*frozen, "fc6", "fc7"], 1e-3) | {"fc8": 0.01} == rates("auto", images=2000)
    slow = rates("decay:0.5")
    assert (slow["fc8"], slow["fc7"], slow["fc6"], slow["conv1"]) == (
        0.01,
        1e-3,
        5e-4,
        pytest.approx(1e-3 / 64, rel=1e-2),
    )
    waits = {rate.layer: rate.epoch for rate in assign_rates(expand_policy("gradual:2", alexnet, 1), alexnet)}
    assert (waits["fc8"], waits["fc7"], waits["fc6"], waits["conv1"]) == (0, 2, 4, 14)
    for wrong in ("fast", "decay:2", "decay:", "gradual:0", "gradual:x"):
        with pytest.raises(UsageError, match="it can be head, fc, all"):
            expand_policy(wrong, alexnet, 1)
    resnet = construct("resnet18")
    assert expand_policy("head", resnet, 1) == "*=0, fc=0.01"
    with pytest.raises(UsageError, match="fc is for AlexNet and VGG; the layers here are conv1, bn1, layer1"):
        expand_policy("fc", resnet, 1)


def test_the_table_names_every_layer_once_per_treatment(alexnet):
    rows = rate_table(assign_rates("*=0, fc7=1e-3, fc8=0.01@2, fc7.bias=x2/wd0", alexnet), 5e-4)
    assert rows[0] == ["conv1", "23,296", "frozen", "", ""]
    assert rows[-3:] == [
        ["fc7", "16,777,216", "0.001", "0.0005", ""],
        ["fc7", "4,096", "0.002", "0", ""],
        ["fc8", "4,097,000", "0.01", "0.0005", "from epoch 2"],
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_trained_parameter_is_in_one_group_with_its_rate_and_decay(optimizer, vgg):
    rates = assign_rates("*=0, conv4_2=1e-3, fc8=0.01, fc8.bias=x2/wd0", vgg)
    parameters = dict(vgg.named_parameters())
    config = FinetuneConfig(weight_decay=0.1, optimizer=optimizer)
    groups = make_optimiser(rates, parameters, config).param_groups
    held = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(held)
    expected = {"classifier.6.weight": (0.01, 0.1), "classifier.6.bias": (0.02, 0.0)}
    expected |= {f"features.{i}.{leaf}": (1e-3, 0.1) for i in (18, 19) for leaf in ("weight", "bias")}
    assert held == {id(parameters[name]): value for name, value in expected.items()}
    groups = make_optimiser(rates, parameters, FinetuneConfig(weight_decay=0.1, no_bias_decay=True)).param_groups
    assert {p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"]} == {True}


def test_frozen_means_no_gradient_and_eval_mode_until_its_epoch_comes(vgg):
    rates = assign_rates("*=0, conv4_2=1, fc7=1@2, fc8=1", vgg)
    for epoch, trained in ((0, {"conv4_2", "fc8"}), (2, {"conv4_2", "fc7", "fc8"})):
        vgg.train()  # what must be put right again
        apply_modes(vgg, rates, epoch)
        layer_of = {rate.parameter: rate.layer for rate in rates}
        assert {layer_of[n] for n, p in vgg.named_parameters() if p.requires_grad} == trained
        norms = {name for name, m in vgg.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
        assert norms == {"features.19"}
        # The dropout before a layer is the layer's: classifier.2 stands before fc7, classifier.5 before fc8.
        dropouts = {name for name, m in vgg.named_modules() if isinstance(m, nn.Dropout) and m.training}
        assert dropouts == ({"classifier.5"} if epoch == 0 else {"classifier.2", "classifier.5"})


@pytest.mark.parametrize(
    ("name", "heads", "last"),
    [("googlenet", {"aux1", "aux2"}, ["aux1.fc2", "aux2.fc2"]), ("inception_v3", {"AuxLogits"}, ["AuxLogits.fc"])],
)
def test_auxiliary_heads_learn_the_new_classes_with_the_rest(name, heads, last):
    network = construct(name, seed=0, classes=3)
    assert list(auxiliary_layers(network).values()) == last
    assert all(network.get_submodule(layer).out_features == 3 for layer in last)
    rates = {rate.parameter: rate.rate for rate in assign_rates(expand_policy("all", network, 5000), network)}
    assert all(rates[f"{layer}.weight"] == rates["fc.weight"] == 0.01 for layer in last)
    assert {rate for parameter, rate in rates.items() if not parameter.startswith(("fc", *last))} == {0.001}
    for policy in ("decay:0.5", "gradual:1"):
        found = {rate.parameter: rate for rate in assign_rates(expand_policy(policy, network, 5000), network)}
        assert all(found[f"{layer}.weight"].rate == 0.01 for layer in last)
    frozen = assign_rates(expand_policy("head", network, 5000), network)
    assert {rate.layer for rate in frozen if rate.rate} == {"fc"}
    apply_modes(network, frozen, 0)
    assert not network.training
    apply_modes(network, assign_rates("*=0.1", network), 0)
    assert network.training


def test_only_heads_whose_last_layer_is_trained_count():
    network = construct("googlenet", seed=0, classes=3)
    rates = assign_rates("*=0.1, aux1.*=0, aux2=0.1@1", network)
    assert [trained_auxiliary_heads(network, rates, epoch) for epoch in (0, 1)] == [[], ["aux2"]]
