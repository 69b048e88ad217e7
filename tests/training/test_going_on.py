"""--continue, --log tensorboard, lr-find, show augment, and a run's weights in the plain network."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from conftest import write_photo
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import get_model

import featx
from featx.errors import PlanMismatch, UsageError
from featx.runtime.progress import SILENT
from featx.training.epoch_log import TensorBoardLog
from featx.training.goal import OneClass
from featx.training.learning_rates import scaled
from featx.training.optimization.range_test import judged
from featx.training.start import starting_network


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 photographs of two colours."""
    folder = tmp_path_factory.mktemp("going-on") / "photos"
    for index in range(24):
        path = folder / "ab"[index % 2] / f"{index:02d}.png"
        write_photo(path, index, (64, 64))
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float64) * 0.6
        pixels[..., index % 2] += 90
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def options(**others):
    chosen = {
        "backbone": "alexnet-mini", "weights": "random:3", "lr": "*=0, fc7=0.01, fc8=0.05", "epochs": 2,
        "batch_size": 8, "val": 0.25, "augment": "none", "init_head": "random", "device": "cpu", "workers": 1,
    }  # fmt: skip
    return featx.FinetuneConfig(**{**chosen, **others})


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    featx.finetune_network(photos, folder, options(log="tensorboard", dropout=0.25))
    return folder


def entries_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_from_its_own_final_layer_with_its_own_options(photos, run, tmp_path):
    config = featx.FinetuneConfig(backbone=str(run), continue_epochs=1, device="cpu", workers=1)
    report = featx.finetune_network(photos, tmp_path / "more", config)
    entries = entries_of(tmp_path / "more")
    assert [entry["epoch"] for entry in entries] == [0, 1]
    best = max(entries_of(run), key=lambda entry: (entry["val_accuracy"], -entry["val_loss"]))
    assert entries[0]["val_loss"] == pytest.approx(best["val_loss"], rel=1e-5)  # it starts where the run has stopped
    request = json.loads((tmp_path / "more" / "config.json").read_text())["plan"]["request"]
    assert (request["epochs"], request["batch_size"], request["dropout"]) == (1, 8, 0.25)
    assert {row.layer: row.rate for row in report.layers}["fc8"] == 0.05
    assert featx.finetune_network(photos, tmp_path / "more", config).epochs == 1  # there already
    given = featx.FinetuneConfig(backbone=str(run), continue_epochs=1, batch_size=4, device="cpu", workers=1)
    with pytest.raises(PlanMismatch, match="--batch-size 8, now 4"):
        featx.finetune_network(photos, tmp_path / "more", given)


def test_on_the_command_line_what_is_given_counts_also_where_it_is_the_default(photos, run, tmp_path, request):
    command = request.getfixturevalue("featx")  # the library has the name here
    words = [
        "finetune",
        photos,
        "-b",
        run,
        "--continue",
        "1",
        "--device",
        "cpu",
        "--workers",
        "1",
        "-o",
        tmp_path / "c",
    ]
    assert command(*words, "--batch-size", "64", "--val", "0.25", "--dropout", "0.25").status == 0
    request_of = json.loads((tmp_path / "c" / "config.json").read_text())["plan"]["request"]
    assert (request_of["batch_size"], request_of["dropout"], request_of["augment"]) == (64, 0.25, "none")
    other = [
        "finetune",
        photos,
        "-b",
        run,
        "--continue",
        "1",
        "--split-column",
        "--device",
        "cpu",
        "-o",
        tmp_path / "d",
    ]
    assert "--val and --split-column are different" not in command(*other).err


def test_it_goes_on_with_its_dropout_and_with_classes_in_its_order_alone(run):
    config = featx.FinetuneConfig(backbone=str(run), continue_epochs=1, dropout=0.125)
    begin = starting_network(config, ["a", "b"], SILENT)
    assert {module.p for module in begin.network.modules() if isinstance(module, torch.nn.Dropout)} == {0.125}
    with pytest.raises(UsageError, match="have others in another order"):
        starting_network(config, ["b", "a"], SILENT)


def test_what_cannot_go_on_is_said(photos, run, tmp_path):
    with pytest.raises(UsageError, match="-b RUN; alexnet-mini is none"):
        featx.finetune_network(
            photos, tmp_path / "no", featx.FinetuneConfig(backbone="alexnet-mini", continue_epochs=1)
        )
    (photos.parent / "list.csv").write_text(
        "path,label\n"
        + "".join(f"photos/{path.relative_to(photos)},{path.parent.name}x\n" for path in photos.rglob("*.png"))
    )
    with pytest.raises(UsageError, match="goes on with the 2 classes of"):
        featx.finetune_network(
            photos.parent / "list.csv", tmp_path / "no", featx.FinetuneConfig(backbone=str(run), continue_epochs=1)
        )
    with pytest.raises(UsageError, match="--continue goes on with the weights of the run"):
        featx.FinetuneConfig(backbone=str(run), continue_epochs=1, from_scratch=True)


def test_tensorboard_has_every_epoch_and_every_class(run, tmp_path):
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    entries = entries_of(run)
    for name in ("loss", "val_loss", "val_accuracy"):
        events = log.Scalars(name)
        assert [event.step for event in events] == [1, 2]
        assert [event.value for event in events] == pytest.approx([entry[name] for entry in entries], rel=1e-6)
    classes = {name: log.Scalars(f"val_class/{name}")[-1].value for name in "ab"}
    assert np.mean([*classes.values()]) == pytest.approx(entries[-1]["val_accuracy"], abs=1e-6)  # of the same size
    written = []
    log = TensorBoardLog(tmp_path, ["rare", "common"], OneClass("accuracy", None, 0.0, torch.device("cpu")))
    log._writer.add_scalar = lambda name, value, epoch: written.append((name, value))
    log.write({"epoch": 1}, (torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])))
    log.close()
    assert dict(written) == {"val_class/rare": 0.0, "val_class/common": 1.0}
    assert json.loads((run / "config.json").read_text())["plan"]["request"].get("log") is None  # it changes nothing


# --- learning rates


def test_the_steepest_fall_is_suggested():
    factors = np.geomspace(1e-3, 1e2, 101)
    # A loss that falls fastest at 0.1, is least at 3 and grows beyond it.
    smooth = 2 / (1 + factors / 0.1) + np.where(factors > 3, (factors - 3) ** 2, 0)
    found = judged(factors, smooth, smooth)
    assert found.suggested == pytest.approx(0.1, rel=0.15)
    assert found.least == pytest.approx(3, rel=0.2)
    growing = np.linspace(1, 2, 101)
    assert judged(factors, growing, growing).suggested is None


def test_lr_find_steps_as_the_training_would(photos, tmp_path):
    config = featx.LrFindConfig(
        **{**vars(options(epochs=10, val=0.0, momentum=0.0, weight_decay=0.0, dropout=0.0)), "lr": "*=0, fc8=1.0"},
        steps=20, lowest=1e-3, highest=1.0,
    )  # fmt: skip
    report = featx.find_learning_rate(photos, tmp_path / "lr", config)
    with (tmp_path / "lr" / "lr.csv").open() as file:
        table = list(csv.DictReader(file))
    factors = np.geomspace(1e-3, 1.0, 20)
    assert [float(line["factor"]) for line in table] == pytest.approx(factors, rel=1e-6)
    # The same steps by hand, on the final layer alone.
    from torchvision.transforms._presets import ImageClassification

    from featx.networks.build import construct, replace_final_layer
    from featx.networks.load import load_network
    from featx.networks.weights import weights_of

    network = construct("alexnet-mini", seed=0)
    network.load_state_dict(load_network("alexnet-mini", weights_of("alexnet-mini", "random:3")).network.state_dict())
    torch.manual_seed(0)
    replace_final_layer(network, 2)
    transform = ImageClassification(crop_size=64, resize_size=64)
    paths = sorted(photos.rglob("*.png"))
    images = torch.stack([transform(Image.open(path)) for path in paths])
    labels = torch.tensor(["ab".index(path.parent.name) for path in paths])
    with torch.no_grad():
        inputs = network.eval().classifier[:8](network.features(images).flatten(1))
    final = network.classifier[8].requires_grad_(True)
    for number, line in enumerate(table):
        epoch, step = divmod(number, 3)
        order = np.array_split(np.random.default_rng([0, epoch]).permutation(24), 3)[step]
        loss = torch.nn.functional.cross_entropy(final(inputs[order]), labels[order])
        assert float(line["loss"]) == pytest.approx(loss.item(), rel=1e-4)
        gradients = torch.autograd.grad(loss, list(final.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(final.parameters(), gradients, strict=True):
                parameter.sub_(factors[number] * gradient)
    factors, losses, smooth = (np.array([float(line[key]) for line in table]) for key in ("factor", "loss", "smooth"))
    found = judged(factors, losses, smooth)
    wanted = [] if found.suggested is None else [("steepest fall (suggested)", found.suggested)]
    wanted += [("at the least loss", found.least), ("a tenth of that", found.least / 10)]
    assert report.rows == [[name, f"{factor:.3g}", scaled("*=0, fc8=1.0", factor)] for name, factor in wanted]
    assert (tmp_path / "lr" / "lr.png").stat().st_size > 5000
    assert not list((tmp_path / "lr").glob("model*"))


def test_options_without_effect_in_lr_find_are_refused():
    with pytest.raises(UsageError, match="--epochs, --warmup: no effect in lr-find"):
        featx.LrFindConfig(epochs=3, warmup=1.0)
    with pytest.raises(UsageError, match="--lowest 2 must be below --highest 1"):
        featx.LrFindConfig(lowest=2, highest=1)
    assert scaled("a-b=1e-3@2/wd0.1, *.bias=x2, c=0", 2) == "a-b=0.002@2/wd0.1, *.bias=x2, c=0"


# --- augmentations, and the weights elsewhere


def test_the_sheet_shows_what_the_training_sees(photos, tmp_path, monkeypatch):
    config = featx.AugmentConfig(augment="flip", backbone="alexnet-mini", images=3, draws=4)
    report = featx.show_augmentation(photos, tmp_path / "sheet", config)
    assert report.rows == [["3", "4"]]
    assert (tmp_path / "sheet" / "augment.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="nothing to show"):
        featx.show_augmentation(photos, tmp_path / "no", featx.AugmentConfig(augment="none"))
    with pytest.raises(UsageError, match="'turn' is none of"):
        featx.show_augmentation(photos, tmp_path / "no", featx.AugmentConfig(augment="turn"))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("squeezenet1_1", {}),
        pytest.param(
            "googlenet", {"aux_logits": True, "init_weights": False, "transform_input": True}, marks=pytest.mark.slow
        ),
        pytest.param(
            "inception_v3",
            {"aux_logits": True, "init_weights": False, "transform_input": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_runs_weights_load_strictly_into_the_plain_network(photos, tmp_path, name, build):
    config = featx.FinetuneConfig(
        backbone=name, weights="random:0", lr="head", epochs=1, batch_size=8, val=0.0, init_head="random", device="cpu",
        workers=1,
    )  # fmt: skip
    featx.finetune_network(photos, tmp_path / "run", config)
    network = get_model(name, weights=None, num_classes=2, **build).eval()
    found = network.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"), strict=True)
    assert not found.missing_keys
    assert not found.unexpected_keys
    described = json.loads((tmp_path / "run" / "config.json").read_text())["preprocess"]
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    transform = ImageClassification(
        crop_size=described["crop"], resize_size=described["resize"],
        interpolation=InterpolationMode(described.get("interpolation", "bilinear")),
    )  # fmt: skip
    paths = sorted(photos.rglob("*.png"))[:2]
    with torch.no_grad():
        expected = network(torch.stack([transform(Image.open(path)) for path in paths]))
    predictor = featx.Predictor(tmp_path / "run")
    np.testing.assert_allclose(predictor.scores(paths), expected, atol=1e-3, rtol=1e-4)
    predictor.close()
