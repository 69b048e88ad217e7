"""`featx finetune` against a plain PyTorch loop, and through kills, several processes and bad input."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_photo
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torchvision.models import googlenet
from torchvision.transforms._presets import ImageClassification

from featx.artifacts.head_rows import kept_together, split_rows
from featx.commands.evaluate import evaluate_head
from featx.commands.extract import extract_features
from featx.commands.finetune import finetune_network
from featx.commands.fit import fit_svm
from featx.commands.predict import predict_images
from featx.errors import (
    DiskError,
    Diverged,
    FileFormatError,
    Interrupted,
    LabelError,
    PlanMismatch,
    TooManyBadImages,
    UsageError,
)
from featx.images.sources.scan import scan
from featx.networks.build import construct, replace_final_layer
from featx.networks.run_folder import trained_on
from featx.options.extraction import ExtractConfig
from featx.options.heads import FitConfig
from featx.options.training import FinetuneConfig
from featx.runtime.progress import Reporter
from featx.store.open import open_features
from featx.training import initial_head as head
from featx.training.data.augment import draw, parse_augmentation
from featx.training.data.pixels import Pixels
from featx.training.job import FinetuningJob
from featx.training.task import plan_task

SPEC = "conv1-conv3=0, conv4=0.01, conv5=0.02, fc6-fc7=0.05, fc8=0.1, *.bias=x2/wd0"


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """24 pictures of 72 x 64 pixels in three classes, which their colours tell apart."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for index in range(24):
        name = "abc"[index % 3]
        path = folder / name / f"{index:02d}.png"
        write_photo(path.with_suffix(".jpg"), index, (72, 64))
        with Image.open(path.with_suffix(".jpg")) as photo:
            pixels = np.asarray(photo, np.float64) * 0.6
        pixels[..., index % 3] += 60 + 20 * generator.random()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        path.with_suffix(".jpg").unlink()
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights for alexnet-mini, with BatchNorm statistics that are not the initial ones."""
    network = construct("alexnet-mini", seed=5)
    generator = torch.Generator().manual_seed(1)
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    path = tmp_path_factory.mktemp("weights") / "mini.safetensors"
    save_file(state, path)
    return path


def options(weights, **others):
    chosen = {
        "backbone": "alexnet-mini", "weights": str(weights), "lr": SPEC, "epochs": 2, "batch_size": 8, "val": 0.0,
        "dropout": 0.0, "augment": "none", "init_head": "random", "device": "cpu", "workers": 1,
    }  # fmt: skip
    return FinetuneConfig(**{**chosen, **others})


def pixels_of(folder: Path, **normalisation):
    """(N, 3, 64, 64) normalised images and (N,) labels of a folder, in the order of their names, by torchvision."""
    transform = ImageClassification(crop_size=64, resize_size=64, **normalisation)
    images, labels = [], []
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            images.append(transform(image))
        labels.append("abc".index(path.parent.name))
    return torch.stack(images), torch.tensor(labels)


def plain_loop(folder, weights, steps, *, smoothing=0.0, decay=5e-4, seed=0, epochs=2, mixed=None, **normalisation):
    """The same training as a script would do it: parameter groups by hand, cosine by hand.

    Args:
        mixed: images and labels (B, 3) of a step instead of its own, from these, their labels and the step.
    """
    images, labels = pixels_of(folder, **normalisation)
    network = construct("alexnet-mini", seed=0)
    network.load_state_dict(load_file(weights))
    torch.manual_seed(seed)
    replace_final_layer(network, 3)
    network.to(memory_format=torch.channels_last).requires_grad_(False).eval()
    rates = {"features.7": 0, "features.8": 0, "features.11": 0.01, "features.12": 0.01, "features.14": 0.02,
             "features.15": 0.02, "classifier.1": 0.05, "classifier.2": 0.05, "classifier.5": 0.05, "classifier.6": 0.05,
             "classifier.8": 0.1}  # fmt: skip
    groups = []
    for name, parameter in network.named_parameters():
        module, _, leaf = name.rpartition(".")
        if rates.get(module, 0):
            parameter.requires_grad_(True)
            network.get_submodule(module).train()
            rate = rates[module] * (2 if leaf == "bias" else 1)
            groups.append(
                {"params": [parameter], "lr": rate, "base": rate, "weight_decay": 0 if leaf == "bias" else decay}
            )
    optimiser = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    for step in range(steps):
        epoch, within = divmod(step, 3)
        order = np.random.default_rng([seed, epoch]).permutation(24)[8 * within : 8 * within + 8]
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * 0.5 * (1 + np.cos(np.pi * (epoch + (within + 0.5) / 3) / epochs))
        optimiser.zero_grad()
        batch, wanted = images[order], labels[order]
        if mixed is not None:
            batch, wanted = mixed(batch, wanted, epoch, within)
        batch = batch.contiguous(memory_format=torch.channels_last)
        F.cross_entropy(network(batch), wanted, label_smoothing=smoothing).backward()
        optimiser.step()
    return network.state_dict()


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max(float((found[n].double() - expected[n].double()).abs().max()) for n in found)


# --- parity


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (4, 12)])
def test_the_weights_are_those_of_a_plain_loop(tmp_path, colours, weights, epochs, steps, monkeypatch):
    # The whole network, not its stored beginning: bit for bit.
    monkeypatch.setattr("featx.training.job.cut_before_training", lambda *_: None)
    finetune_network(colours, tmp_path / "run", options(weights, epochs=epochs, label_smoothing=0.1))
    expected = plain_loop(colours, weights, steps, smoothing=0.1, epochs=epochs)
    found = load_file(tmp_path / "run" / "model.safetensors")
    assert {name for name in found if not torch.equal(found[name], expected[name])} == set()
    # Frozen to the last bit, BatchNorm's statistics included; and the others have moved.
    start = load_file(weights)
    frozen = [f"features.{index}." for index in (0, 1, 4, 5, 8, 9)]
    same = {name for name in found if name in start and torch.equal(found[name], start[name])}
    assert same == {n for n in start if n.startswith(tuple(frozen)) and n in found} - {"features.7.weight"}


def test_mixed_images_have_mixed_labels_as_in_a_plain_loop(tmp_path, colours, weights):
    """Pixel by pixel, and with labels that say how much of each image there is."""
    seen = []

    def mixed(images, labels, epoch, step):
        seeds = np.random.SeedSequence((0, epoch, step, 0)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seeds[0] >> 1))
        mixes = draw(parse_augmentation("mixup:1,cutmix"), 8, 64, 64, generator).mixes
        own = F.one_hot(labels, 3).float()
        found, wanted = images.clone(), own.clone()
        for place, partner in enumerate(mixes.partners.tolist()):
            left, top, right, bottom = mixes.patches[place].int().tolist()
            if right > left and bottom > top:
                found[place, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
                share = 1 - (right - left) * (bottom - top) / 64**2
            else:
                share = float(mixes.shares[place])
                found[place] = share * images[place] + (1 - share) * images[partner]
            wanted[place] = share * own[place] + (1 - share) * own[partner]
            seen.append(0.05 < share < 0.95 and bool((own[place] != own[partner]).any()))
        return found, wanted

    config = options(weights, augment="mixup:1,cutmix", label_smoothing=0.1)
    finetune_network(colours, tmp_path / "run", config)
    found = load_file(tmp_path / "run" / "model.safetensors")
    expected = plain_loop(colours, weights, 6, smoothing=0.1, mixed=mixed)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=1e-4, msg=name)
    assert sum(seen) > 5


def test_trained_from_the_stored_output_of_frozen_layers_they_are_the_same(tmp_path, colours, weights):
    finetune_network(colours, tmp_path / "run", options(weights))
    assert not (tmp_path / "run" / "cache").exists()
    found = load_file(tmp_path / "run" / "model.safetensors")
    assert largest_difference(found, plain_loop(colours, weights, 6)) < 1e-5


def test_auxiliary_heads_count_with_three_tenths_as_in_a_plain_loop(tmp_path, colours):
    """GoogLeNet by torchvision's own class; its weights are those of the run, all of them."""
    asked = options("random:3", backbone="googlenet", lr="*=0.01", epochs=1, crop=64, resize=64)
    finetune_network(colours, tmp_path / "run", asked)
    found = load_file(tmp_path / "run" / "model.safetensors")
    start = construct("googlenet", seed=3)
    torch.manual_seed(0)
    replace_final_layer(start, 3)
    network = googlenet(
        num_classes=3, aux_logits=True, transform_input=True, init_weights=False, dropout=0.0, dropout_aux=0.0
    )
    network.load_state_dict(start.state_dict(), strict=True)
    network.train().to(memory_format=torch.channels_last)
    images, labels = pixels_of(colours)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    order = np.random.default_rng([0, 0]).permutation(24)
    for step in range(3):
        optimiser.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + np.cos(np.pi * (step + 0.5) / 3))
        places = order[8 * step : 8 * step + 8]
        said = network(images[places].contiguous(memory_format=torch.channels_last))
        losses = [
            F.cross_entropy(logits, labels[places]) for logits in (said.logits, said.aux_logits1, said.aux_logits2)
        ]
        optimiser.zero_grad()
        (losses[0] + 0.3 * losses[1] + 0.3 * losses[2]).backward()
        optimiser.step()
    assert largest_difference(found, network.state_dict()) < 1e-5
    moved = {n for n, tensor in found.items() if not torch.equal(tensor, start.state_dict()[n])}
    assert {"aux1.fc2.weight", "aux2.conv.conv.weight", "inception4a.branch1.conv.weight"} <= moved
    network.load_state_dict(found, strict=True)


@pytest.mark.slow
def test_a_file_without_auxiliary_heads_gets_fresh_ones(tmp_path, colours):
    state = {
        n: tensor for n, tensor in construct("googlenet", seed=3).state_dict().items() if not n.startswith("aux")
    }
    save_file(state, tmp_path / "plain.safetensors")
    asked = options(
        tmp_path / "plain.safetensors",
        backbone="googlenet",
        lr="*=0, fc=0.01, aux1.fc2=0.01",
        epochs=1,
        crop=64,
        resize=64,
    )
    finetune_network(colours, tmp_path / "run", asked)
    found, fresh = load_file(tmp_path / "run" / "model.safetensors"), construct("googlenet", seed=0).state_dict()
    for name, tensor in found.items():  # the file's, or in its auxiliary heads those of the run's own seed
        if "num_batches" not in name and not name.startswith(("fc.", "aux1.fc2", "aux2.fc2")):
            assert torch.equal(tensor, state.get(name, fresh.get(name))), name
    assert all(
        bool(torch.isfinite(tensor).all()) for tensor in load_file(tmp_path / "run" / "model.safetensors").values()
    )


def test_images_too_small_for_an_auxiliary_head_are_refused(tmp_path, colours):
    asked = options("random:0", backbone="inception_v3", lr="*=0.01", epochs=1, crop=128, resize=128)
    with pytest.raises(UsageError, match=r"128 x 128 pixels are too small for the auxiliary head of inception_v3"):
        finetune_network(colours, tmp_path / "run", asked)


def test_stored_output_is_of_images_prepared_as_asked(tmp_path, colours, weights):
    finetune_network(colours, tmp_path / "run", options(weights, mean="0.1,0.2,0.3", std="0.3,0.4,0.5"))
    found = load_file(tmp_path / "run" / "model.safetensors")
    by_hand = plain_loop(colours, weights, 6, mean=(0.1, 0.2, 0.3), std=(0.3, 0.4, 0.5))
    assert largest_difference(found, by_hand) < 1e-5


def test_a_run_prepares_images_as_it_was_trained_with_whoever_uses_it(tmp_path, colours, weights):
    how = {"fit": "pad", "pad_color": "mean", "grey": True, "crop": 64}
    finetune_network(colours, tmp_path / "run", options(weights, **how, lr="head", epochs=1))
    extract_features(colours, tmp_path / "f.h5", ExtractConfig(backbone=str(tmp_path / "run"), layers="prob"))
    predict_images(tmp_path / "run", colours, tmp_path / "p.csv")
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    features = open_features(tmp_path / "f.h5")
    np.testing.assert_allclose(np.array([row[2:5] for row in rows], float), features["prob"], atol=1e-5)
    assert features.provenance["preprocess"]["pad"] == [124, 116, 104]


def test_accumulated_in_parts_a_step_is_the_same(tmp_path, colours, weights):
    # BatchNorm would see the parts, so it is frozen here.
    spec = "*=0, classifier.*.weight=0.05, classifier.2=0, classifier.6=0"
    for name, parts in (("whole", 1), ("parts", 3)):
        finetune_network(
            colours, tmp_path / name, options(weights, lr=spec, accumulate=parts, class_weights="balanced")
        )
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert 0 < largest_difference(*found) < 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch 2.11's own
@pytest.mark.slow
def test_compiled_steps_are_those_of_a_plain_loop(tmp_path, colours, weights):
    finetune_network(colours, tmp_path / "run", options(weights, compile=True, epochs=1))
    found = load_file(tmp_path / "run" / "model.safetensors")
    assert 0 < largest_difference(found, plain_loop(colours, weights, 3, epochs=1)) < 1e-4


def test_compiling_without_a_compiler_is_refused_at_once(tmp_path, colours, weights, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"--compile needs a C\+\+ compiler.*no-such-compiler"):
        finetune_network(colours, tmp_path / "run", options(weights, compile=True))
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_an_option_there_is_now_goes_on(tmp_path, colours, weights):
    first = finetune_network(colours, tmp_path / "run", options(weights, epochs=1))
    description = json.loads((tmp_path / "run" / "config.json").read_text())
    assert description["plan"]["request"].pop("compile") is False
    (tmp_path / "run" / "config.json").write_text(json.dumps(description))
    assert finetune_network(colours, tmp_path / "run", options(weights, epochs=1)) == first
    with pytest.raises(PlanMismatch, match="compile"):
        finetune_network(colours, tmp_path / "run", options(weights, epochs=1, compile=True))


def test_class_weights_clipping_and_the_average_are_pytorchs(tmp_path, colours, weights):
    """One step each of two, so that every number can be followed."""
    (tmp_path / "photos").mkdir()
    for path in sorted(colours.rglob("*.png"))[2:]:  # two of class a are missing
        target = tmp_path / "photos" / path.relative_to(colours)
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(path)
    config = options(
        weights, lr="*=0, fc8=10", epochs=2, batch_size=22, class_weights="balanced", clip=0.005, ema=0.75,
        schedule="constant", weight_decay=0.0, momentum=0.0, follow_links=True,
    )  # fmt: skip
    finetune_network(tmp_path / "photos", tmp_path / "run", config)
    network = construct("alexnet-mini", seed=0)
    network.load_state_dict(load_file(weights))
    torch.manual_seed(0)
    replace_final_layer(network, 3)
    images, labels = pixels_of(colours)
    images, labels = images[2:], labels[2:]
    final = network.classifier[8].requires_grad_(True)
    average = [p.detach().clone() for p in final.parameters()]
    for step in range(2):
        memory = (1 + step) / (10 + step)
        loss = F.cross_entropy(network(images), labels, weight=torch.tensor([22 / 18, 22 / 24, 22 / 24]))
        gradients = torch.autograd.grad(loss, list(final.parameters()))
        length = torch.stack([g.norm() for g in gradients]).norm()
        assert length > 0.005
        with torch.no_grad():
            for own, kept, gradient in zip(final.parameters(), average, gradients, strict=True):
                own.sub_(10 * gradient * 0.005 / length)
                kept.copy_(memory * kept + (1 - memory) * own)
    found = load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(found["classifier.8.weight"], average[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found["classifier.8.bias"], average[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("kind", "searched"), [("softmax", None), ("svm", None), ("softmax", 9)])
def test_the_head_starts_at_the_optimum_for_the_frozen_features(
    tmp_path, colours, weights, kind, searched, monkeypatch
):
    """Of all images, also where C was chosen on some of them."""
    if searched:
        monkeypatch.setattr(head, "SEARCHED", searched)
    config = options(weights, lr="*=0, fc8=1e-12", epochs=1, init_head=kind, val=0.25)
    report = finetune_network(colours, tmp_path / "run", config)
    state = load_file(tmp_path / "run" / "model.safetensors")
    network = construct("alexnet-mini", seed=0)
    network.load_state_dict(load_file(weights))
    images, labels = pixels_of(colours)
    features = network.classifier[:8](network.features(images).flatten(1)).double().numpy()
    from featx.heads.splits import split_by_share

    train, val = split_by_share(labels.numpy().astype(np.int32), 0.25, 0)
    logits = features @ state["classifier.8.weight"].double().numpy().T + state["classifier.8.bias"].double().numpy()
    assert report.start == pytest.approx(float((logits[val].argmax(1) == labels.numpy()[val]).mean()))
    if kind == "softmax":
        # At its optimum for the C that was chosen: found again from the weights, W = C sum (y - p) x.
        pull = np.eye(3)[labels.numpy()[train]] - torch.softmax(torch.from_numpy(logits[train]), 1).numpy()
        direction = pull.T @ features[train]
        own = state["classifier.8.weight"].double().numpy()
        c = float((own * direction).sum() / (direction * direction).sum())
        # The heads of some of the images are not the sum over all: their residual is 30 % and more.
        assert np.abs(own - c * direction).max() <= 0.01 * np.abs(own).max()
        model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(features[train], labels.numpy()[train])
        np.testing.assert_allclose(
            torch.softmax(torch.from_numpy(logits), 1).numpy(), model.predict_proba(features), atol=0.02
        )


def test_mirrored_views_are_stored_and_trained_on(tmp_path, colours, weights):
    plain = finetune_network(colours, tmp_path / "one", options(weights, lr="*=0, fc8=0.1", epochs=3))
    both = finetune_network(colours, tmp_path / "two", options(weights, lr="*=0, fc8=0.1", epochs=3, cache_views=2))
    assert plain.train == both.train
    assert largest_difference(*(load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))) > 1e-4
    # The same images mirrored by hand: with both views a network cannot tell which of the two it was given.
    with pytest.raises(UsageError, match="--cache-views 2 is for frozen first layers without augmentation"):
        finetune_network(colours, tmp_path / "three", options(weights, augment="flip", cache_views=2))


def test_layers_wait_for_their_epoch(tmp_path, colours, weights):
    start = load_file(weights)
    for epochs, moved in ((1, False), (2, True)):
        run = tmp_path / f"{epochs}"
        finetune_network(colours, run, options(weights, lr="*=0, fc7=0.01@1, fc8=0.1", epochs=epochs))
        found = load_file(run / "model.safetensors")
        assert torch.equal(found["classifier.5.weight"], start["classifier.5.weight"]) is not moved


def test_training_stops_when_validation_stops_getting_better_and_keeps_the_best(tmp_path, colours, weights):
    config = options(weights, lr="*=0, fc8=0.05", epochs=60, val=0.25, patience=3, schedule="constant")
    report = finetune_network(colours, tmp_path / "run", config)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(entries, key=lambda entry: (entry["val_accuracy"], -entry["val_loss"]))
    assert report.best_epoch == best["epoch"]
    assert len(entries) == report.epochs
    assert report.epochs == 60 or report.epochs == best["epoch"] + 3
    assert report.metrics is not None
    assert report.metrics.accuracy == pytest.approx(best["val_accuracy"])


def test_a_kill_between_the_last_checkpoint_and_its_metrics_costs_no_epoch(tmp_path, colours, weights, monkeypatch):
    config = options(weights, lr="head", epochs=2, val=0.25, checkpoint_minutes=0)
    real = FinetuningJob._write_metrics

    def killed(self, history):
        if history and history[-1]["epoch"] == 2:
            raise KeyboardInterrupt
        real(self, history)

    monkeypatch.setattr(FinetuningJob, "_write_metrics", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune_network(colours, tmp_path / "run", config)
    monkeypatch.undo()
    finetune_network(colours, tmp_path / "run", config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_if_no_epoch_is_better_the_start_is_kept(tmp_path, colours, weights, killed):
    """Rates that destroy: what is kept is a softmax on the frozen features, as fitted by itself."""
    config = options(weights, lr="conv1-fc7=0, fc8=30", epochs=2, val=0.25, init_head="softmax", checkpoint_minutes=0)
    run = tmp_path / "run"
    if killed:
        words = [
            sys.executable,
            Path(__file__).parents[1] / "training" / "killing_runs.py",
            colours,
            run,
            json.dumps(vars(config)),
        ]
        subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    report = finetune_network(colours, run, config)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [0, 1, 2]
    assert all(entry["val_loss"] > entries[0]["val_loss"] for entry in entries[1:])
    assert (report.best_epoch, report.epochs) == (0, 2)
    assert report.metrics.accuracy == report.start == entries[0]["val_accuracy"]
    assert all(layer.moved == 0 for layer in report.layers)
    with Image.open(run / "curves.png") as picture:
        assert picture.size[0] > 1000


# --- what it leaves behind


def test_a_run_is_a_backbone_that_every_command_takes(tmp_path, colours, weights, featx):
    run = tmp_path / "run"
    done = featx(
        "finetune", colours, "-b", "alexnet-mini", "-w", weights, "--lr", "fc", "--epochs", 2, "--val", "25%", "-o", run,
        "--device", "cpu", "--init-head", "random", "--json",
    )  # fmt: skip
    assert done.status == 0
    assert done.json["lr"] == "*=0, fc6-fc7=0.001, fc8=0.01"
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
        "report.json",
        "trained_on.bin",
    }
    moved = {row["layer"]: row["moved"] for row in done.json["layers"]}
    assert moved["conv5"] == 0 < moved["fc6"]
    network = construct("alexnet-mini", seed=0, classes=3)
    network.load_state_dict(load_file(run / "model.safetensors"))
    images, labels = pixels_of(colours)
    expected = torch.softmax(network.eval()(images), 1).numpy()
    predict_images(run, colours, tmp_path / "p.csv")
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    np.testing.assert_allclose(np.array([row[2:5] for row in rows], float), expected, atol=1e-5)
    assert [row[1] for row in rows] == ["abc"[k] for k in expected.argmax(1)]
    assert evaluate_head(run, colours).metrics.accuracy == pytest.approx(
        float((expected.argmax(1) == labels.numpy()).mean())
    )
    assert featx("extract", colours, "-b", run, "-l", "fc6,fc8", "-o", tmp_path / "f.h5").status == 0
    assert featx("verify", tmp_path / "f.h5").status == 0
    again = featx("finetune", colours, "-b", run, "--lr", "head", "--epochs", 1, "-o", tmp_path / "again", "--json")
    assert again.json["classes"] == ["a", "b", "c"]
    assert json.loads((tmp_path / "again" / "config.json").read_text())["backbone"] == "alexnet-mini"
    with Image.open(run / "curves.png") as picture:
        assert picture.size[0] > 800


def test_images_that_the_network_was_trained_on_are_not_called_unseen(tmp_path, colours, weights, featx):
    run, file, head = tmp_path / "run", tmp_path / "f.h5", tmp_path / "head.safetensors"
    finetune_network(colours, run, options(weights, val=0.25))
    assert featx("extract", colours, "-b", run, "-l", "fc7", "-o", file).status == 0
    learnt = {path for path in colours.rglob("*.png") if _hash(path) in trained_on(run).tobytes()}
    assert len(learnt) == 18
    opened = open_features(file)
    fitted = fit_svm(file, head, FitConfig(test=0.5, seed=3, c=1.0))
    rows = opened.usable()
    _, test = split_rows(
        opened, rows, kept_together(opened, rows), FitConfig(test=0.5, seed=3, c=1.0), multilabel=False
    )
    both = sum(colours / opened.paths[row] in learnt for row in test.tolist())
    assert 0 < both < len(test)
    assert any(f"{both} of {len(test)} test images are among those that {run} was fine-tuned on" in note
               for note in fitted.notes)  # fmt: skip
    done = featx("probe", file, "--per-class", "2", "--repeats", "3", "--c", "1")
    assert f"test images are among those that {run} was fine-tuned on: the accuracy is too high" in done.err
    trained = {colours / opened.paths[row] for row in rows.tolist()} - {colours / opened.paths[row] for row in test}
    assert evaluate_head(head, file).trained_on == len(trained | learnt)  # the network's are the head's too
    assert featx("extract", colours, "-b", "alexnet-mini", "-l", "fc7", "-o", tmp_path / "g.h5").status == 0
    assert "fine-tuned on" not in " ".join(fit_svm(tmp_path / "g.h5", None, FitConfig(test=0.5, seed=3, c=1.0)).notes)


def _hash(path):
    return hashlib.sha256(path.read_bytes()).digest()[:8]


def test_a_run_that_goes_on_from_another_says_which_images_it_has_learnt_already(tmp_path, colours, weights, featx):
    run, more = tmp_path / "run", tmp_path / "more"
    finetune_network(colours, run, options(weights, val=0.25, seed=1))
    words = ["finetune", colours, "-b", run, "--continue", "1", "--seed", "5", "--device", "cpu", "-o", more]
    done = featx(*words)
    assert done.status == 0
    plan = plan_task(scan(colours), val=0.25, split_column=False, seed=5, copies=np.arange(24))
    paths = scan(colours).paths
    first, second = (trained_on(folder).tobytes() for folder in (run, more))
    seen = sum(_hash(colours / os.fsdecode(paths[row])) in first for row in plan.val.tolist())
    assert 0 < seen < len(plan.val)
    assert f"note: {seen} validation images are among those that {run} was trained on" in done.err
    assert all(first[start : start + 8] in second for start in range(0, len(first), 8))  # and so has what comes of it
    done = featx(*words[:-1], tmp_path / "scratch", "--weights", "random:0")
    assert "was trained on" not in done.err


def test_features_of_a_run_that_was_trained_anew_are_not_taken_for_the_old_ones(tmp_path, colours, weights, featx):
    run = tmp_path / "run"
    for lr in ("*=0, fc8=0.1", "*=0, fc7=0.1, fc8=0.1"):
        finetune_network(colours, run, options(weights, lr=lr))
        done = featx("extract", colours, "-b", run, "-l", "fc8", "-o", tmp_path / "f.h5")
        assert done.status == (0 if lr == "*=0, fc8=0.1" else 4)
        for path in run.iterdir():
            path.unlink()


def test_a_finished_run_is_left_alone_and_another_plan_is_refused(tmp_path, colours, weights):
    first = finetune_network(colours, tmp_path / "run", options(weights, val=0.25))
    before = (tmp_path / "run" / "model.safetensors").stat()
    again = finetune_network(colours, tmp_path / "run", options(weights, val=0.25))
    assert again == first
    assert (tmp_path / "run" / "model.safetensors").stat() == before
    with pytest.raises(PlanMismatch, match=r"is a run made with different settings: --epochs 2, now 3"):
        finetune_network(colours, tmp_path / "run", options(weights, val=0.25, epochs=3))


def test_a_finished_run_is_not_taken_for_one_of_other_weights_of_the_same_name(tmp_path, colours, weights):
    own = tmp_path / "w.safetensors"
    shutil.copy(weights, own)
    finetune_network(colours, tmp_path / "run", options(own))
    finetune_network(
        colours, tmp_path / "next", replace(options(own), backbone=str(tmp_path / "run"), weights="default")
    )
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, own)
    with pytest.raises(PlanMismatch, match="was begun with other weights"):
        finetune_network(colours, tmp_path / "run", options(own))
    shutil.rmtree(tmp_path / "run")
    finetune_network(colours, tmp_path / "run", options(own))
    with pytest.raises(PlanMismatch, match="was begun with other weights"):
        finetune_network(
            colours, tmp_path / "next", replace(options(own), backbone=str(tmp_path / "run"), weights="default")
        )
    own.unlink()  # gone, it says nothing against what was made of it
    assert finetune_network(colours, tmp_path / "run", options(own)).epochs == 2


def test_a_run_is_of_the_class_weights_that_a_file_had(tmp_path, colours, weights):
    names, file = sorted(folder.name for folder in colours.iterdir()), tmp_path / "w.csv"

    def write(first):
        file.write_text("class,weight\n" + "".join(f"{n},{first if n == names[0] else 1}\n" for n in names))

    write(1)
    config = options(weights, class_weights=str(file))
    finetune_network(colours, tmp_path / "run", config)
    moved = file.rename(tmp_path / "moved.csv")  # where it lies is not a setting
    assert finetune_network(colours, tmp_path / "run", replace(config, class_weights=str(moved))).epochs == 2
    write(4)
    with pytest.raises(PlanMismatch, match="class-weights sha256"):
        finetune_network(colours, tmp_path / "run", config)
    going_on = FinetuneConfig(backbone=str(tmp_path / "run"), continue_epochs=1, device="cpu", workers=1)
    with pytest.raises(UsageError, match="which is gone or holds others now"):
        finetune_network(colours, tmp_path / "more", going_on)
    write(1)
    finetune_network(colours, tmp_path / "more", going_on)
    plan = json.loads((tmp_path / "more" / "config.json").read_text())["plan"]
    assert plan["class_weights"] == str(file)
    assert plan["request"]["class_weights"].startswith("sha256 ")


@pytest.mark.parametrize(("augment", "workers"), [("flip,shift:3", 1), ("flip,cutmix", 4)])
def test_images_that_do_not_fit_into_memory_are_decoded_for_every_step(tmp_path, colours, weights, augment, workers):
    for name, memory in (("kept", None), ("not", 1_000_000)):
        config = options(weights, lr="*=0.01", augment=augment, memory=memory, epochs=1, workers=workers)
        if memory:
            object.__setattr__(config, "memory", 1000)  # below what the command line allows
        finetune_network(colours, tmp_path / name, config)
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("kept", "not")]
    assert largest_difference(*found) == 0


@pytest.mark.parametrize("augment", ["flip", "flip,mixup,cutmix"])
def test_images_are_decoded_once_for_each_step_and_before_it(tmp_path, colours, weights, monkeypatch, augment):
    asked, read, own = [], [], {name: getattr(Pixels, name) for name in ("take", "_decode")}

    def take(self, places):
        if self._pool is not None:
            asked.append((places.tolist(), places.tobytes() in self._ahead, len(self._ahead)))
        return own["take"](self, places)

    def decode(self, rows):
        read.extend(rows.tolist())
        return own["_decode"](self, rows)

    monkeypatch.setattr(Pixels, "take", take)
    monkeypatch.setattr(Pixels, "_decode", decode)
    config = options(weights, augment=augment, batch_size=8, accumulate=2, lr="*=0.01")
    object.__setattr__(config, "memory", 1000)  # below what the command line allows
    finetune_network(colours, tmp_path / "run", config)
    # 24 images: two epochs of three steps of two parts.
    assert [ahead for _, ahead, _ in asked] == [False] * 2 + [True] * 10
    assert max(waiting for *_, waiting in asked) <= 2
    assert len(read) == sum(len(places) for places, *_ in asked)
    for places, *_ in asked:
        assert len(places) == len(set(places)) <= 8
    if augment == "flip":
        assert sorted(read) == sorted([*range(24)] * 2)


# --- kills, processes


def command(source, run, weights, *more):
    words = [sys.executable, "-m", "featx", "finetune", source, "-b", "alexnet-mini", "-w", weights, "-o", run, *more]
    return [str(word) for word in words]


def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path, colours, weights):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    everything = {
        "lr": "*=0.02", "batch_size": 6, "val": 0.25, "augment": "flip,crop:0.5,jitter:0.2", "ema": 0.9,
        "optimizer": "adamw", "warmup": 1.0, "init_head": "softmax", "checkpoint_minutes": 0.0, "dropout": 0.3,
    }  # fmt: skip
    config = {spec.name: getattr(options(weights, **everything), spec.name) for spec in fields(FinetuneConfig)}
    script = Path(__file__).parents[1] / "training" / "killing_runs.py"
    words = [sys.executable, script, colours, killed, json.dumps(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert int(ran.stdout) >= 4
    again = "import sys, json, featx; featx.finetune_network(*sys.argv[1:3], featx.FinetuneConfig(**json.loads(sys.argv[3])))"
    undisturbed = [sys.executable, "-c", again, colours, whole, json.dumps(config)]
    subprocess.run(undisturbed, capture_output=True, text=True, check=True, env=environment)
    for name in ("model.safetensors", "metrics.jsonl", "curves.png"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    reports = [json.loads((run / "report.json").read_text()) for run in (whole, killed)]
    assert [{**report, "seconds": 0} for report in reports] == [{**reports[0], "seconds": 0}] * 2


@pytest.mark.parametrize(
    ("batch", "parts", "augment", "balance", "more"),
    [
        ("7", "1", "flip,crop:0.5", "balanced", []),
        pytest.param("14", "2", "flip,crop:0.5", "balanced", [], marks=pytest.mark.slow),
        pytest.param("7", "1", "flip,crop:0.5", "balanced", ["--compile"], marks=pytest.mark.slow),
        pytest.param("14", "2", "flip,crop:0.5,mixup,cutmix", "none", [], marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(tmp_path, colours, weights, batch, parts, augment, balance, more):
    """BatchNorm too, which sees all images of a step; without dropout, which each process draws for itself."""
    options_ = ("--lr", "conv1-conv3=0, conv4-conv5=1e-4, fc6-fc8=5e-4", "--epochs", "2", "--batch-size", batch, "--val", "25%", "--dropout", "0",
                "--augment", augment, "--class-weights", balance, "--device", "cpu", "--workers", "1",
                "--accumulate", parts)  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run(command(colours, one, weights, *options_), check=True, capture_output=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    words = [
        *launcher,
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        *command(colours, two, weights, *options_, *more)[1:],
    ]
    ran = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = [load_file(run / "model.safetensors") for run in (one, two)]
    for name, tensor in found[0].items():
        difference = float((tensor.double() - found[1][name].double()).abs().max())
        assert difference <= 2e-5 * float(tensor.double().abs().max()), name
    histories = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
    ]
    for ours, theirs in zip(*histories, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)
    assert ran.stdout.count("fine-tuned to 3 classes") == 1


# --- bad input


@pytest.mark.slow
def test_parts_that_are_too_small_for_the_processes_are_refused(tmp_path, colours, weights):
    options_ = ("--lr", "*=0, fc8=5e-4", "--batch-size", "7", "--accumulate", "4", "--val", "0", "--device", "cpu")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", "localhost:0"]  # fmt: skip
    words = [*launcher, *command(colours, tmp_path / "run", weights, *options_)[1:]]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert re.search(r"\d images per step in --accumulate 4 parts are too few for 2 processes", ran.stderr)


def test_a_training_that_diverges_stops_and_names_the_rate(tmp_path, colours, weights):
    with pytest.raises(Diverged, match=r"is NaN or infinite in epoch 1.*highest rate is 1e\+30 of fc7.*lower rate"):
        finetune_network(colours, tmp_path / "run", options(weights, lr="*=0, fc7=1e30, fc8=0.1", epochs=5))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_in_mid_checkpoint_loses_nothing(tmp_path, colours, weights, monkeypatch):
    finetune_network(colours, tmp_path / "whole", options(weights, epochs=3, checkpoint_minutes=0))
    real, calls = os.replace, []

    def full(source, target):
        if str(target).endswith("checkpoint.safetensors"):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError, match=r"checkpoint.safetensors: No space left on device; free some space"):
        finetune_network(colours, tmp_path / "run", options(weights, epochs=3, checkpoint_minutes=0))
    assert [path.name for path in (tmp_path / "run").iterdir() if "partial" in path.name] == []
    finetune_network(colours, tmp_path / "run", options(weights, epochs=3, checkpoint_minutes=0))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_a_checkpoint_holds_what_changes_and_refuses_another_networks(tmp_path, colours, weights):
    config = options(weights, epochs=3, lr="conv1-conv5=0, fc6=0.01, fc7=0, fc8=0.1", checkpoint_minutes=0)
    with pytest.raises(Interrupted):
        finetune_network(colours, tmp_path / "run", config, reporter=StopAfterEpoch())
    path = tmp_path / "run" / "checkpoint.safetensors"
    held = {name.removeprefix("model/") for name in load_file(path) if name.startswith("model/")}
    parameters = {name for name, _ in construct("alexnet-mini").named_parameters()}
    assert held & parameters == {
        "classifier.1.weight", "classifier.2.weight", "classifier.2.bias", "classifier.8.weight", "classifier.8.bias"
    }  # fmt: skip
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    without = {name: tensor for name, tensor in tensors.items() if name != "model/classifier.8.weight"}
    for wrong in (without, tensors | {"model/features.99.weight": torch.zeros(1)}):
        save_file(wrong, path, metadata)
        with pytest.raises(FileFormatError, match=r"checkpoint.safetensors does not fit the network: "):
            finetune_network(colours, tmp_path / "run", config)
    save_file(tensors, path, metadata)
    finetune_network(colours, tmp_path / "run", config)
    finetune_network(colours, tmp_path / "whole", config)
    runs = [load_file(tmp_path / run / "model.safetensors") for run in ("run", "whole")]
    assert largest_difference(*runs) == 0


class StopAfterEpoch(Reporter):
    """Sends this process a signal at the end of the first epoch."""

    def note(self, text: str) -> None:
        if text.startswith("epoch 1 "):
            os.kill(os.getpid(), signal.SIGTERM)


def test_bad_images_are_counted_or_too_many(tmp_path, colours, weights):
    for path in colours.rglob("*.png"):
        target = tmp_path / "photos" / path.relative_to(colours)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "photos" / "a" / "00.png").write_bytes(b"no image")
    for augment in ("none", "flip,crop"):  # stored output of frozen layers; decoded images
        run = tmp_path / augment.replace(",", "")
        with pytest.raises(TooManyBadImages, match=r"1 of 24 images.*a/00.png"):
            finetune_network(tmp_path / "photos", run, options(weights, augment=augment))
        report = finetune_network(tmp_path / "photos", run / "more", options(weights, augment=augment, max_bad=0.1))
        assert (report.train, report.failed) == (23, 1)
    for path in (tmp_path / "photos" / "b").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(LabelError, match="no image of class 'b' is left to train on"):
        finetune_network(tmp_path / "photos", tmp_path / "none-left", options(weights, max_bad=1.0))


def test_sources_without_two_classes_and_rates_without_layers_are_refused(tmp_path, colours, weights):
    with pytest.raises(LabelError, match="has no labels"):
        finetune_network(colours / "a", tmp_path / "run", options(weights))
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{path},x|y\n" for path in sorted(colours.rglob("*.png")))
    )
    with pytest.raises(UsageError, match=r"several classes \(a\|b\); --class-weights is for one class"):
        finetune_network(tmp_path / "list.csv", tmp_path / "run", options(weights, class_weights="balanced"))
    with pytest.raises(UsageError, match="freezes every layer; nothing would be trained"):
        finetune_network(colours, tmp_path / "run", options(weights, lr="*=0"))
    with pytest.raises(UsageError, match="use --init-head random"):
        finetune_network(
            colours, tmp_path / "run",
            FinetuneConfig(backbone="squeezenet1_1", weights="random:0", lr="*=1e-3", device="cpu"),
        )  # fmt: skip
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_what_is_refused_at_once_leaves_no_folder_but_a_users_own(tmp_path, colours, weights):
    (tmp_path / "mine").mkdir()
    for run in (tmp_path / "run", tmp_path / "mine"):
        with pytest.raises(UsageError):
            finetune_network(colours, run, options(weights, lr="fc9=1"))
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "mine").exists()


def test_a_report_gives_the_rate_of_the_weights_and_says_when_the_start_was_better(tmp_path, colours, weights):
    run = tmp_path / "a run"
    config = options(weights, lr="*=0, fc7.bias=0.5, fc8=0.001, fc8.bias=x2", epochs=1, init_head="softmax", val=0.25)
    report = finetune_network(colours, run, config)
    rates = {row.layer: row.rate for row in report.layers}
    assert (rates["fc7"], rates["fc8"]) == (0.5, 0.001)
    for best, words in ((0, "no epoch was better than the head on the frozen features"), (1, "the best was 1")):
        assert words in str(replace(report, best_epoch=best))
        assert words not in str(replace(report, best_epoch=1 - best))
    assert f"featx extract IMAGES -b '{run}' -o new.h5; featx predict '{run}' IMAGES -o new.csv" in str(report)


def test_a_class_with_one_image_is_trained_on_and_not_validated(tmp_path, colours, weights):
    lines = [f"{path},{path.parent.name}\n" for path in sorted(colours.rglob("*.png")) if path.parent.name != "c"]
    lines.append(f"{colours}/c/02.png,c\n")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(lines))
    report = finetune_network(
        tmp_path / "list.csv", tmp_path / "run", options(weights, init_head="softmax", val=0.25)
    )
    assert (report.train, report.val) == (13, 4)
    assert report.metrics is not None
    assert report.metrics.per_class["c"] is None


def test_a_folder_that_is_no_run_or_an_unfinished_one_is_refused(tmp_path, colours, featx):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"format": "featx run", "schema": 9, "plan": {"featx": "7.0"}}')
    said = featx("extract", colours, "-b", run, "-l", "fc7", "-o", tmp_path / "f.h5")
    assert said.status == 2
    assert "has schema '9'; this version of featx reads schema 1" in said.err
    for text in ("{", "[]", '{"format": "other"}', '{"format": "featx run", "schema": 1, "classes": 3}'):
        (run / "config.json").write_text(text)
        with pytest.raises(FileFormatError):
            evaluate_head(run, colours)
    described = {"format": "featx run", "schema": 1, "backbone": "alexnet-mini", "classes": ["a", "b"],
                 "preprocess": {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "squash": False}, "plan": {}}  # fmt: skip
    (run / "config.json").write_text(json.dumps(described))
    said = featx("extract", colours, "-b", run, "-l", "fc7", "-o", tmp_path / "f.h5")
    assert said.status == 2
    assert "is not finished; run the same featx finetune command again" in said.err
