"""Weights are what they say they are, or they are refused; nothing in them can run."""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import os
import pickle
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from featx.errors import DiskError, UsageError, WeightsMismatch, WeightsUnavailable
from featx.extraction.recipe import Recipe
from featx.networks.backbone import Backbone
from featx.networks.build import construct
from featx.networks.checkpoints import find_state, fit_state, read_checkpoint
from featx.networks.download import _hash_in, fetch_weights
from featx.networks.load import load_network
from featx.networks.registry import architecture, backbone_names
from featx.networks.weights import sha256_of_state, weights_of

NET = "squeezenet1_1"  # 1.2 million parameters: quick to write and read


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server on this machine: its address, its folder, and the paths it was asked for."""
    folder, asked = tmp_path / "server", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}", folder, asked
        web.shutdown()
        thread.join()


def publish(folder: Path, name: str = "net") -> str:
    """A checkpoint on the server, with its hash in its name as torchvision does it."""
    torch.save(construct(NET, seed=5).state_dict(), folder / "raw")
    digest = hashlib.sha256((folder / "raw").read_bytes()).hexdigest()
    (folder / "raw").rename(folder / f"{name}-{digest[:8]}.pth")
    return f"{name}-{digest[:8]}.pth"


def test_a_download_is_checked_kept_and_not_repeated(server, tmp_path):
    address, folder, asked = server
    name = publish(folder)
    seen = []
    path, digest = fetch_weights(f"{address}/{name}", lambda *args: seen.append(args), tmp_path / "cache")
    assert path.read_bytes() == (folder / name).read_bytes()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "cache" / f"{name}.sha256").read_text().strip() == digest
    assert seen[-1][1] == seen[-1][2] == path.stat().st_size
    assert fetch_weights(f"{address}/{name}", None, tmp_path / "cache") == (path, digest)
    assert asked == [f"/{name}"]
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [name, f"{name}.sha256"]


def test_a_download_whose_hash_is_not_the_one_in_its_name_is_not_kept(server, tmp_path):
    address, folder, _ = server
    (folder / "net-0123abcd.pth").write_bytes(b"something else")
    with pytest.raises(WeightsMismatch, match="its name promises 0123abcd: not kept"):
        fetch_weights(f"{address}/net-0123abcd.pth", None, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_file_that_was_changed_is_refused_on_the_next_load(server, tmp_path):
    address, folder, _ = server
    name = publish(folder)
    path, _ = fetch_weights(f"{address}/{name}", None, tmp_path / "cache")
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(WeightsMismatch, match="it is damaged or was changed"):
        fetch_weights(f"{address}/{name}", None, tmp_path / "cache")


def test_a_file_that_torch_itself_cached_is_checked_against_its_name(tmp_path):
    (tmp_path / "net-0123abcd.pth").write_bytes(b"planted")
    with pytest.raises(WeightsMismatch, match="expected 0123abcd"):
        fetch_weights("http://127.0.0.1:9/net-0123abcd.pth", None, tmp_path)


def test_weights_in_a_folder_that_cannot_be_written_are_taken_as_they_are(tmp_path):
    name = publish(tmp_path)
    (tmp_path / f"{name}.sha256.{os.getpid()}.partial").mkdir()  # root can write anywhere else
    path, digest = fetch_weights(f"http://127.0.0.1:9/{name}", folder=tmp_path)
    assert path == tmp_path / name
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_empty_record_does_not_vouch_for_anything(tmp_path):
    name = publish(tmp_path)
    (tmp_path / f"{name}.sha256").touch()  # a full disk left it so
    path, digest = fetch_weights(f"http://127.0.0.1:9/{name}", folder=tmp_path)
    assert (tmp_path / f"{name}.sha256").read_text().strip() == digest
    path.write_bytes(b"planted")
    for text in ("", hashlib.sha256(b"planted").hexdigest()):
        (tmp_path / f"{name}.sha256").write_text(text)
        with pytest.raises(WeightsMismatch):
            fetch_weights(f"http://127.0.0.1:9/{name}", folder=tmp_path)


def test_without_a_place_for_a_download_what_can_be_done_is_said(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot write .* Let TORCH_HOME name a folder .* with --weights FILE"):
        fetch_weights(f"{server[0]}/{publish(server[1])}", folder=tmp_path / "file" / "cache")


def test_no_such_file_on_the_server_says_what_to_do_without_a_network(server, tmp_path):
    address, _, asked = server
    with pytest.raises(WeightsUnavailable, match=r"HTTP 404 .*--weights FILE.*--weights random:0"):
        fetch_weights(f"{address}/gone-01234567.pth", None, tmp_path)
    assert len(asked) == 1


def test_no_server_is_tried_again_and_then_said(tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(WeightsUnavailable, match=r"cannot download http://127\.0\.0\.1:9/"):
        fetch_weights("http://127.0.0.1:9/net-01234567.pth", None, tmp_path)
    assert waits == [1, 2]


def test_the_published_weights_come_from_a_mirror_if_one_is_set(server, tmp_path, monkeypatch):
    address, folder, asked = server
    source = weights_of(NET, "default")
    published = source.url.rsplit("/", 1)[-1]
    (folder / published).write_bytes(b"not the real thing")
    monkeypatch.setenv("FEATX_WEIGHTS_MIRROR", address + "/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with pytest.raises(WeightsMismatch, match="its name promises"):
        load_network(NET, source)
    assert asked == [f"/{published}"]


def test_every_published_file_carries_its_hash_in_its_name():
    published = [name for name in backbone_names() if architecture(name).weights.files()]
    urls = [w.url for name in published for w in torchvision.models.get_model_weights(name)]
    assert len(urls) > 100
    assert [url for url in urls if len(_hash_in(url.rsplit("/", 1)[-1])) < 8] == []


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch /tmp/featx-test-code-was-run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    for name, save in {"zip.pth": torch.save, "old.pth": lambda o, p: p.write_bytes(pickle.dumps(o))}.items():
        save({"w": Bomb()}, tmp_path / name)
        with pytest.raises(
            WeightsMismatch,
            match=r"object of type posix\.system, and making one would run code|cannot be read as plain weights",
        ):
            read_checkpoint(tmp_path / name)
    assert not Path("/tmp/featx-test-code-was-run").exists()


@pytest.mark.parametrize("kind", ["pth", "old.pth", "safetensors", "nested.pth", "parallel.pth"])
def test_a_file_gives_the_same_network_however_it_was_saved(tmp_path, kind):
    network = construct(NET, seed=5)
    state, path = network.state_dict(), tmp_path / f"net.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "nested.pth":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "parallel.pth":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    loaded = load_network(NET, weights_of(NET, str(path)))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of_state(loaded.network.state_dict()) == sha256_of_state(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.0.bias"), r"has no tensor features\.0\.bias \(64,\)"),
        (lambda s: s.update({"extra": torch.zeros(3)}), r"has a tensor extra \(3,\) that the network lacks"),
        (
            lambda s: s.update({"classifier.1.weight": torch.zeros(10, 512, 1, 1)}),
            r"classifier\.1\.weight is \(10, 512, 1, 1\), the network needs \(1000, 512, 1, 1\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_first_wrong_tensor(tmp_path, change, message):
    state = construct(NET, seed=5).state_dict()
    change(state)
    torch.save(state, tmp_path / "net.pth")
    last = Backbone(NET).names.resolve("prob")
    with pytest.raises(WeightsMismatch, match=message):
        load_network(NET, weights_of(NET, str(tmp_path / "net.pth"))).capture(last)


def test_mnasnets_format_version_and_old_densenet_names_are_understood():
    state = construct("mnasnet0_5", seed=1).state_dict()
    fit_state(construct("mnasnet0_5"), state, "here")
    fit_state(construct("mnasnet0_5"), dict(state), "here, saved without the version")
    old = {
        name.replace("norm1", "norm.1").replace("conv1", "conv.1") if "denselayer" in name else name: tensor
        for name, tensor in construct("densenet121", seed=1).state_dict().items()
        if not name.endswith("num_batches_tracked")  # nor did these exist then
    }
    densenet = construct("densenet121")
    assert not fit_state(densenet, find_state(densenet, old, "here"), "here").missing


def test_weights_that_are_not_numbers_are_refused_where_a_layer_needs_them(tmp_path):
    state = construct(NET, seed=5).state_dict()
    state["classifier.1.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "net.pth")
    from featx.extraction.engine import Engine
    from featx.extraction.recipe import Recipe

    def extractor(layer: str) -> Engine:
        weights = str(tmp_path / "net.pth")
        return Engine(Recipe.plan(backbone=NET, layers=layer, weights=weights, pool="none"))

    extractor("features.5")
    with pytest.raises(WeightsMismatch, match=r"classifier\.1\.weight holds NaN"):
        extractor("classifier.1")


def test_a_seed_gives_the_same_weights_every_time_and_leaves_the_callers_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (load_network(NET, weights_of(NET, f"random:{s}")) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert first.sha256 == again.sha256 != other.sha256


@pytest.mark.parametrize("spec", ["IMAGENET1K_V9", "random", "random:-1", "nothing.pth", "best"])
def test_what_are_no_weights_is_refused_with_what_can_be_chosen(spec):
    with pytest.raises(UsageError, match=r"IMAGENET1K_V1|no file nothing\.pth"):
        weights_of("alexnet", spec)


@pytest.mark.parametrize("spec", ["IMAGENET1K_FEATURES", "VGG16_Weights.IMAGENET1K_FEATURES"])
def test_named_weights_bring_their_own_preprocessing(spec):
    from featx.networks.backbone import Backbone

    source = weights_of("vgg16", spec)
    assert source.name == "VGG16_Weights.IMAGENET1K_FEATURES"
    assert Backbone("vgg16", None, source.published).preprocessing["std"] == pytest.approx([1 / 255] * 3)


# --- checkpoints as public code writes them (PyTorch's tutorials, torch.compile, DDP, Lightning, Places365, timm, SWA)


def in_half(state):
    return {name: tensor.half() for name, tensor in state.items()}


LAYOUTS = {
    "tutorial.pth": lambda s: {"epoch": 1, "model_state_dict": s, "optimizer_state_dict": {"state": {}}, "loss": 0.1},
    "compiled.pth": lambda s: {f"_orig_mod.{n}": t for n, t in s.items()},
    "ddp-compiled.pth": lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
    "lightning.ckpt": lambda s: {
        "state_dict": {**{f"model.{n}": t for n, t in s.items()}, "loss.weight": torch.ones(10)},
        "hyper_parameters": {"lr": 0.1},
    },
    "places.pth.tar": lambda s: {"state_dict": {n.replace("features.", "features.module."): t for n, t in s.items()}},
    "net.pth": lambda s: {"net": s},
    "weights.bin": lambda s: {"weights": s},
    "deep.pth": lambda s: {"checkpoint": {"ema": {"model": s}}},
    "encoder.pth": lambda s: {"state_dict": {f"backbone.encoder.{n}": t for n, t in s.items()}},
    "averaged.pth": lambda s: {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in s.items()}},
    "ema.pth": lambda s: {"model_ema": {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in s.items()}}},
    "arguments.pth": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)},
    "parameters.pth": lambda s: {n: nn.Parameter(t, requires_grad=t.is_floating_point()) for n, t in s.items()},
    "same-twice.pth": lambda s: {"state_dict": s, "best_state_dict": dict(s)},
    "half.pth": in_half,
    "CAPITALS.PTH": lambda s: s,
    "no-ending/weights": lambda s: s,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_found_wherever_a_trainer_put_them(tmp_path, name):
    state = construct(NET, seed=5).state_dict()
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save(LAYOUTS[name](state), path)
    loaded = load_network(NET, weights_of(NET, str(path)))
    expected = in_half(state) if name == "half.pth" else state
    for key, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, expected[key].float()), key
    assert not loaded.gaps.missing


def test_several_sets_of_weights_that_differ_are_named_and_one_can_be_chosen(tmp_path):
    first, other = construct(NET, seed=5).state_dict(), construct(NET, seed=6).state_dict()
    path = tmp_path / "both.pth"
    torch.save({"model": first, "model_ema": other}, path)
    with pytest.raises(
        WeightsMismatch, match=r"several sets of weights: model, model_ema\. Choose .*both\.pth#model"
    ):
        load_network(NET, weights_of(NET, str(path)))
    for name, state in {"model": first, "model_ema": other}.items():
        loaded = load_network(NET, weights_of(NET, f"{path}#{name}"))
        assert sha256_of_state(loaded.network.state_dict()) == sha256_of_state(state)
    with pytest.raises(WeightsMismatch, match=r"holds no set of weights 'modle'\. Nearest: 'model'"):
        load_network(NET, weights_of(NET, f"{path}#modle"))
    torch.save({**{f"net.{n}": t for n, t in first.items()}, **{f"ema.net.{n}": t for n, t in other.items()}}, path)
    with pytest.raises(WeightsMismatch, match="several sets of weights"):
        load_network(NET, weights_of(NET, str(path)))


def test_another_number_of_classes_matters_only_for_the_layers_behind_it(tmp_path):
    state = construct(NET, seed=5).state_dict()
    state["classifier.1.weight"], state["classifier.1.bias"] = torch.zeros(365, 512, 1, 1), torch.zeros(365)
    torch.save(state, tmp_path / "places.pth")
    loaded = load_network(NET, weights_of(NET, str(tmp_path / "places.pth")))
    names = Backbone(NET).names
    loaded.capture(names.resolve("features.12"))
    with pytest.raises(WeightsMismatch, match=r"classifier\.1\.weight is \(365, 512, 1, 1\), the network needs"):
        loaded.capture(names.resolve("classifier.1"))


def test_the_weights_of_a_deeper_network_are_not_taken_for_those_of_a_shallower_one(tmp_path):
    """Every tensor of resnet18 is in resnet34, in the same shape."""
    torch.save(construct("resnet34", seed=5).state_dict(), tmp_path / "net.pth")
    loaded = load_network("resnet18", weights_of("resnet18", str(tmp_path / "net.pth")))
    names = Backbone("resnet18").names
    with pytest.raises(WeightsMismatch, match=r"has a tensor layer\d\.\d\.\S+ .* that the network lacks"):
        loaded.capture(names.resolve("penultimate"))
    loaded.capture(names.resolve("maxpool"))


def test_a_whole_network_or_a_program_is_named_and_not_made(tmp_path):
    network = torchvision.models.squeezenet1_1().eval()
    torch.save(network, tmp_path / "whole.pth")
    with pytest.raises(WeightsMismatch, match=r"object of type torchvision\.models\.squeezenet\.SqueezeNet"):
        read_checkpoint(tmp_path / "whole.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and people have such files
        torch.jit.script(network).save(tmp_path / "program.pt")
    with pytest.raises(WeightsMismatch, match="TorchScript program"):
        read_checkpoint(tmp_path / "program.pt")


# --- preprocessing follows the weights


def test_a_published_file_brings_its_own_preprocessing_by_its_name(tmp_path):
    file = tmp_path / "mobilenet_v2-b0353104.pth"  # IMAGENET1K_V1's; the default is V2, resized to 232
    torch.save(construct("mobilenet_v2", seed=0).state_dict(), file)
    recipe = Recipe.plan(backbone="mobilenet_v2", weights=str(file), device="cpu")
    transforms = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    assert [recipe.preprocess.resize] == transforms.resize_size == [256]
    assert recipe.assumed is None


def test_a_published_file_under_another_name_is_recognised_by_its_hash(tmp_path, monkeypatch):
    file = tmp_path / "mine.pth"
    torch.save(construct("mobilenet_v2", seed=0).state_dict(), file)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = architecture("mobilenet_v2").weights
    real = entry.files()
    v1 = "MobileNet_V2_Weights.IMAGENET1K_V1"
    monkeypatch.setattr(type(entry), "files", lambda self: {**real, v1: f"mobilenet_v2-{found[:8]}.pth"})
    assert weights_of("mobilenet_v2", str(file)).published == v1


def test_what_is_assumed_of_other_weights_is_said_and_can_be_chosen(tmp_path):
    file = tmp_path / "mine.pth"
    torch.save(construct("mobilenet_v2", seed=0).state_dict(), file)
    recipe = Recipe.plan(backbone="mobilenet_v2", weights=str(file), device="cpu")
    assert recipe.preprocess.resize == 232
    assert (
        "prepared as for IMAGENET1K_V2 (resize 232, crop 224, bilinear). --preprocess chooses: IMAGENET1K_V1, "
        in (recipe.assumed or "")
    )
    chosen = Recipe.plan(backbone="mobilenet_v2", weights=str(file), device="cpu", preprocess="IMAGENET1K_V1")
    assert chosen.preprocess.resize == 256
    assert chosen.assumed is None
    with pytest.raises(
        UsageError, match="--preprocess is 'V9'; for mobilenet_v2 it can be IMAGENET1K_V1, IMAGENET1K_V2"
    ):
        Recipe.plan(backbone="mobilenet_v2", preprocess="V9", device="cpu")
