"""timm's networks and modules of one's own: the values of their own forward, and no code that only a file names."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import write_photo
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

import featx
from featx.errors import PlanMismatch, UnknownBackbone, UsageError, WeightsMismatch
from featx.images.preprocess import Preprocess
from featx.networks.backbone import Backbone
from featx.networks.build import construct
from featx.networks.external import code
from featx.networks.load import load_network
from featx.networks.registry import default_preprocessing
from featx.networks.weights import weights_of

NET = '''
import torch
from torch import nn
from beside import WIDTH


class Odd(nn.Module):
    """It changes its input in place, and decides by values."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x):
        x += 1
        y = self.conv(x)
        return y if y.abs().sum() >= 0 else x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 5, 2), nn.ReLU(inplace=True))
        self.odd = Odd()
        self.top = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.top(self.odd(self.stem(x)).mean((2, 3)))


class Plain(Net):
    def __init__(self):
        super().__init__()
        self.odd = nn.Conv2d(WIDTH, WIDTH, 3)


def build():
    return Net()


def plain():
    return Plain()


def prepared():
    return Net(), {"resize": 80, "crop": 64, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


def wrong():
    return Net(), {"size": 80}


def nothing():
    return 7


def broken():
    raise RuntimeError("no such file")
'''


@pytest.fixture(autouse=True)
def nobody_has_named_anything(monkeypatch):
    monkeypatch.setattr(code, "_trusted", {})


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A folder with net.py, in which the test is."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    for index in range(6):
        write_photo(tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg", index)
    return tmp_path


def config(backbone, layers=None, **options):
    return featx.ExtractConfig(backbone=backbone, layers=layers, device="cpu", **options)


# --- timm


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",
        "efficientnet_b0",
        "vit_small_patch16_224",
        "convnext_tiny",
        "regnety_008",
        "xcit_nano_12_p8_224",
        "convnext_base.fb_in22k_ft_in1k_384",
        "deepseek_vit_412m.deepseek_v4_1_flash",
    ],
)
def test_images_are_prepared_as_timms_own_transform_does_it(name):
    ours = Preprocess.from_values({"squash": False, **default_preprocessing(f"timm:{name}")})
    theirs = create_transform(**resolve_data_config(timm.models.get_pretrained_cfg(name).to_dict()))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 401, 3), np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (ours.mean, ours.std))
    found = (torch.from_numpy(ours.pixels(Image.fromarray(pixels))).float().div(255) - mean) / std
    torch.testing.assert_close(found, theirs(Image.fromarray(pixels)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", ["layer2.0.act1", "layer4", "global_pool"]), pytest.param("convnext_atto", ["stages.1", "head.norm"], marks=pytest.mark.slow),
     ("vit_tiny_patch16_224", ["blocks.3", "norm", "fc_norm"]), pytest.param("maxvit_pico_rw_256", ["stages.1", "norm"], marks=pytest.mark.slow)],
)  # fmt: skip
def test_layers_are_what_hooks_see_in_timms_own_network(net, name, layers):
    featx.extract_features(
        net / "photos", net / "f.h5", config(f"timm:{name}", [*layers, "logits"], weights="random:2")
    )
    found = featx.open_features(net / "f.h5")
    assert featx.verify_file(net / "f.h5").passed
    network = timm.create_model(name).eval()
    network.load_state_dict(construct(f"timm:{name}", seed=2).state_dict())
    caught: dict[str, torch.Tensor] = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: caught.update({layer: output.detach().clone()})
        )
    transform = create_transform(**resolve_data_config({}, model=network))
    with torch.no_grad(), Image.open(net / "photos" / found.paths[4]) as image:
        caught["logits"] = network(transform(image.convert("RGB"))[None])
    for layer in [*layers, "logits"]:
        np.testing.assert_allclose(
            found[layer][4], caught[layer][0].numpy(), rtol=0, atol=1e-5 * float(caught[layer].abs().max())
        )
    assert found.provenance["code"] == f"timm {timm.__version__}"
    with featx.Extractor(f"timm:{name}", [*layers, "logits"], weights="random:2", device="cpu") as extractor:
        alone = extractor(net / "photos" / found.paths[4])
        assert all(np.array_equal(alone[layer][0], found[layer][4]) for layer in alone)


def test_weights_of_the_hub_are_fetched_once_and_loaded_by_timm(net, tmp_path):
    """A server that answers as the hub does; their names are the older ones, which timm translates."""
    state = construct("timm:resnet18", seed=4).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    content, asked = (tmp_path / "model.safetensors").read_bytes(), []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self, send=False):
            asked.append((self.command, self.path))
            self.send_response(200 if self.path == "/timm/resnet18.a1_in1k/resolve/main/model.safetensors" else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"' + "1" * 40 + '"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if send:
                self.wfile.write(content)

        def do_GET(self):
            self.do_HEAD(send=True)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub"),
                     "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        words = [sys.executable, "-c", _LOAD_TWICE]
        said = subprocess.run(words, env=variables, check=True, capture_output=True, text=True).stdout.split()
        server.shutdown()
    assert [path for method, path in asked if method == "GET"].count(
        "/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    ) == 1
    assert said == [hashlib.sha256(content).hexdigest()] * 2 + [
        "True",
        "hf-hub:timm/resnet18.a1_in1k/model.safetensors",
    ]


_LOAD_TWICE = """
import sys, torch
from safetensors.torch import load_file
from featx.networks.load import load_network
from featx.networks.weights import weights_of
source = weights_of("timm:resnet18", "default")
for _ in range(2):
    loaded = load_network("timm:resnet18", source)
    print(loaded.sha256)
state = load_file("model.safetensors")
print(all(torch.equal(tensor, state[name]) for name, tensor in loaded.network.state_dict().items()), source.url)
"""


def test_weights_without_a_network_say_what_to_do(net):
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(net / "hub")}
    words = [sys.executable, "-m", "featx", "extract", str(net / "photos"), "-b", "timm:resnet18", "-o", "f.h5"]
    done = subprocess.run(words, env=variables, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(
        "featx: cannot download model.safetensors of timm/resnet18.a1_in1k"
    )
    assert "--weights FILE" in done.stderr


def test_a_file_with_older_names_is_translated_by_timm(tmp_path):
    state = construct("timm:densenet121", seed=1).state_dict()
    names = {name: name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") for name in state}
    older = {names[name]: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert older.keys() != state.keys()
    for names, file in ((state, "new.safetensors"), (older, "old.safetensors")):
        save_file(names, tmp_path / file)
        loaded = load_network("timm:densenet121", weights_of("timm:densenet121", str(tmp_path / file)))
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.network.state_dict().items())
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatch, match=r"other\.safetensors"):
        load_network("timm:densenet121", weights_of("timm:densenet121", str(tmp_path / "other.safetensors")))


def test_a_crop_mode_that_featx_has_not_is_refused():
    with pytest.raises(UsageError, match=r"crop_mode 'squash' with crop_pct 0\.9"):
        default_preprocessing("timm:dm_nfnet_f0.dm_in1k")


def test_names_that_timm_does_not_know_are_refused():
    with pytest.raises(UnknownBackbone, match="Nearest: 'resnet18'"):
        Backbone("timm:resnet17")
    with pytest.raises(UnknownBackbone, match=r"has no weights 'resnet18\.foo'; it has resnet18\.a1_in1k"):
        Backbone("timm:resnet18.foo")
    with pytest.raises(UsageError, match=r"timm's names say which weights"):
        weights_of("timm:resnet18", "IMAGENET1K_V1")


def test_without_a_final_layer_the_last_but_one_is_the_output():
    headless = Backbone("timm:vit_small_patch14_dinov2")
    found = headless.names.resolve("penultimate,logits")
    assert found[0].node == found[1].node
    assert headless.geometry_of(found[0]).shape == (384,)


@pytest.mark.parametrize("backbone", ["timm:resnet18", "net.py:plain"])
def test_they_are_fine_tuned_and_the_weights_fit_their_own_class(net, backbone):
    chosen = {"backbone": backbone, "lr": "*=0.01", "epochs": 1, "device": "cpu", "augment": "none", "val": 0.0}
    weights = "random:0" if backbone.startswith("timm") else "default"
    featx.finetune_network(
        net / "photos",
        net / "run",
        featx.FinetuneConfig(**chosen, weights=weights, init_head="random", crop=64, resize=64),
    )
    state = load_file(net / "run" / "model.safetensors")
    if backbone.startswith("timm"):
        timm.create_model("resnet18", num_classes=2).load_state_dict(state, strict=True)
    else:
        assert state["top.weight"].shape == (2, 8)
    featx.predict_images(net / "run", net / "photos", net / "p.csv")
    assert len((net / "p.csv").read_text().splitlines()) == 7
    assert json.loads((net / "run" / "config.json").read_text())["backbone"] == backbone


# --- modules of one's own


def test_layers_of_an_own_module_are_what_hooks_see(net):
    featx.extract_features(
        net / "photos", net / "f.h5", config("net.py:prepared", "stem,odd,penultimate,logits", pool="avg")
    )
    found = featx.open_features(net / "f.h5")
    assert found.provenance["preprocess"]["mean"] == [0.5, 0.4, 0.3]
    assert found.provenance["code"].startswith("net.py sha256 ")
    assert featx.verify_file(net / "f.h5").passed
    with featx.Extractor("net.py:prepared", list(found), pool="avg", device="cpu") as extractor:
        alone = extractor(net / "photos" / found.paths[4])
        assert all(np.array_equal(alone[layer][0], found[layer][4]) for layer in alone)
    sys.path.insert(0, str(net))
    try:
        space: dict[str, object] = {}
        exec(compile(NET, "net", "exec"), space)
    finally:
        sys.path.remove(str(net))
    torch.manual_seed(0)
    network, how = space["prepared"]()
    caught = {}
    for layer in ("stem", "odd"):
        network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: caught.update({layer: output.detach().clone()})
        )
    with torch.no_grad(), Image.open(net / "photos" / found.paths[3]) as image:
        size = Preprocess(80, 64, "bilinear", how["mean"], how["std"])
        mean, std = (torch.tensor(how[name])[:, None, None] for name in ("mean", "std"))
        logits = network.eval()(((torch.from_numpy(size.pixels(image.convert("RGB"))) / 255 - mean) / std)[None])
    for layer in ("stem", "odd"):  # stem as it was before `odd` added 1 to it
        np.testing.assert_allclose(found[layer][3], caught[layer][0].mean((1, 2)).numpy(), atol=1e-5)
    np.testing.assert_allclose(found["logits"][3], logits[0].numpy(), atol=1e-5)


def test_code_that_only_a_file_names_is_not_run(net, monkeypatch):
    featx.extract_features(net / "photos", net / "f.h5", config("net.py:prepared"))
    featx.fit_svm(net / "f.h5", net / "head.safetensors", featx.FitConfig(c=1.0))
    featx.finetune_network(
        net / "photos",
        net / "run",
        featx.FinetuneConfig(
            backbone="net.py:plain", lr="*=0.1", epochs=1, device="cpu", val=0.0, init_head="random"
        ),
    )
    monkeypatch.setattr(code, "_trusted", {})
    (net / "net.py").write_text(NET + "\nopen('was-run', 'w').write('x')\n")
    attempts = [
        lambda: featx.verify_file(net / "f.h5"),
        lambda: featx.predict_images(net / "head.safetensors", net / "photos", net / "p.csv"),
        lambda: featx.Predictor(net / "head.safetensors")([np.zeros((64, 64, 3), np.uint8)]),
        lambda: featx.predict_images(net / "run", net / "photos", net / "q.csv"),
        lambda: featx.extract_features(net / "photos", net / "g.h5", config(str(net / "run"), "logits")),
        lambda: featx.evaluate_head(net / "run", net / "photos"),
        lambda: featx.show_top(net / "f.h5", net / "top"),
    ]
    for attempt in attempts:
        with pytest.raises(UsageError, match=r"featx runs code only if you name it: .* featx --trust net\.py:p"):
            attempt()
    (net / "sub").mkdir()
    (net / "run").rename(net / "sub" / "net.py:plain")  # a folder may be called anything
    for attempt in (
        lambda: featx.predict_images("sub/net.py:plain", net / "photos", net / "q.csv"),
        lambda: featx.extract_features(net / "photos", net / "g.h5", config("sub/net.py:plain", "logits")),
        lambda: featx.show_saliency(
            [net / "photos" / "a" / "0.jpg"], net / "s", featx.SaliencyConfig(backbone="sub/net.py:plain")
        ),
    ):
        with pytest.raises(UsageError, match="featx runs code only if you name it"):
            attempt()
    assert not (net / "was-run").exists()
    served = subprocess.run(
        [sys.executable, "-m", "featx", "serve", "--model", "head.safetensors"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert served.returncode == 2
    assert not (net / "was-run").exists()


def test_code_that_has_changed_is_refused_and_named(net):
    featx.extract_features(net / "photos", net / "f.h5", config("net.py:prepared"))
    featx.fit_svm(net / "f.h5", net / "head.safetensors", featx.FitConfig(c=1.0))
    featx.predict_images(net / "head.safetensors", net / "photos", net / "p.csv")
    tuned = {"lr": "*=0.1", "epochs": 1, "device": "cpu", "val": 0.0, "init_head": "random"}
    featx.finetune_network(net / "photos", net / "run", featx.FinetuneConfig(backbone="net.py:plain", **tuned))
    (net / "net.py").write_text(NET.replace("x += 1", "x += 2"))
    for attempt in (
        lambda: featx.verify_file(net / "f.h5"),
        lambda: featx.predict_images(net / "run", net / "photos", net / "r.csv"),
        lambda: featx.predict_images(net / "head.safetensors", net / "photos", net / "q.csv"),
    ):
        with pytest.raises(WeightsMismatch, match=r"net\.py:\w+ is net\.py sha256 [0-9a-f]{64} now"):
            attempt()
    with pytest.raises(PlanMismatch, match=r"code net\.py sha256"):
        featx.extract_features(net / "photos", net / "f.h5", config("net.py:prepared"))


def test_moved_code_is_found_where_it_is_named(net, monkeypatch):
    featx.extract_features(net / "photos", net / "f.h5", config("net.py:prepared"))
    (net / "there").mkdir()
    for name in ("net.py", "beside.py"):
        (net / name).rename(net / "there" / name)
    monkeypatch.setattr(code, "_trusted", {})
    done = subprocess.run(
        [sys.executable, "-m", "featx", "--trust", "there/net.py:prepared", "verify", "f.h5"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_module_of_a_package_and_weights_of_a_file(net, monkeypatch):
    (net / "pkg").mkdir()
    (net / "pkg" / "__init__.py").write_text("")
    (net / "pkg" / "nets.py").write_text(NET)
    monkeypatch.syspath_prepend(str(net))
    code.trust_code("pkg.nets:build")
    network = construct("pkg.nets:build", seed=7)
    torch.save(network.state_dict(), net / "w.pth")
    loaded = load_network("pkg.nets:build", weights_of("pkg.nets:build", str(net / "w.pth")))
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), loaded.network.state_dict().values(), strict=True)
    )
    built = load_network("pkg.nets:build", weights_of("pkg.nets:build", "default"))
    assert built.sha256 == load_network("pkg.nets:build", weights_of("pkg.nets:build", "default")).sha256
    recipe_note = featx.extract_features(net / "photos", net / "f.h5", config("pkg.nets:build", "top"))
    assert recipe_note.done == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:build", "no file nowhere.py"),
        ("no.such.module:build", "no Python module no.such.module"),
        ("net.py:missing", r"has no callable missing; it has Net, Odd, Plain, broken"),
        ("net.py:nothing", "gave int; it must give an nn.Module"),
        ("net.py:broken", "net.py:broken failed: RuntimeError: no such file"),
        ("net.py:wrong", r"must be a dict with some of \['crop'"),
        ("bad.py:build", "cannot be imported: SyntaxError"),
    ],
)
def test_code_that_gives_no_network_is_refused(net, name, message):
    (net / "bad.py").write_text("def (")
    with pytest.raises(UsageError, match=message):
        featx.extract_features(net / "photos", net / "f.h5", config(name))
    assert not Path("f.h5").exists()
