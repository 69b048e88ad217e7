"""Several classes per image, numbers, weights of classes and the score of the best epoch, against plain PyTorch."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import write_photo
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, r2_score
from torch import nn
from torchvision.transforms._presets import ImageClassification

import featx
from featx.errors import LabelError, UsageError
from featx.networks.build import construct, replace_final_layer
from featx.networks.load import load_network
from featx.training.goal import Numbers, OneClass, SeveralClasses

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """20 photographs, warm, bright, both or neither; and how bright and how red each is."""
    folder = tmp_path_factory.mktemp("goals")
    labels, values = ["path,label"], ["path,label"]
    for index in range(20):
        path = folder / f"{index:02d}.png"
        write_photo(path, index, (64, 64))
        warm, bright = index % 2 == 0, index % 4 < 2
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float64) * 0.4 + (90 if bright else 0)
        pixels[..., 0] += 50 * warm
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        names = [name for name, given in (("bright", bright), ("warm", warm)) if given] or ["dull"]
        labels.append(f"{path.name},{'|'.join(names)}")
        values.append(f"{path.name},{1000 + 5 * pixels.mean():.3f}|{pixels[..., 0].mean() / 1000:.5f}")
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "values.csv").write_text("\n".join(values) + "\n")
    return folder


def options(**others):
    chosen = {
        "backbone": "alexnet-mini", "weights": "random:3", "lr": "*=0, fc8=0.05", "epochs": 2, "batch_size": 20,
        "val": 0.0, "dropout": 0.0, "augment": "none", "init_head": "random", "device": "cpu", "workers": 1,
        "weight_decay": 0.0, "momentum": 0.0, "schedule": "constant",
    }  # fmt: skip
    return featx.FinetuneConfig(**{**chosen, **others})


def plain_loop(folder, outputs, loss, rate, steps=2):
    """The final layer of the same training, step by step; and what goes into it."""
    network = construct("alexnet-mini", seed=0)
    network.load_state_dict(load_network("alexnet-mini", featx_weights()).network.state_dict())
    torch.manual_seed(0)
    replace_final_layer(network, outputs)
    transform = ImageClassification(crop_size=64, resize_size=64)
    images = torch.stack([transform(Image.open(path)) for path in sorted(folder.glob("*.png"))])
    network.eval()
    with torch.no_grad():
        inputs = network.classifier[:8](network.features(images).flatten(1))
    final = network.classifier[8].requires_grad_(True)
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(final(inputs)), list(final.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(final.parameters(), gradients, strict=True):
                parameter.sub_(rate * gradient)
    return final, inputs


def featx_weights():
    from featx.networks.weights import weights_of

    return weights_of("alexnet-mini", "random:3")


MEMBERSHIP = torch.tensor([[i % 4 < 2, i % 4 == 3, i % 2 == 0] for i in range(20)])  # bright, dull, warm


def test_several_classes_are_trained_as_by_a_plain_loop(lists, tmp_path):
    run = tmp_path / "run"
    report = featx.finetune_network(lists / "labels.csv", run, options(label_smoothing=0.1))
    assert report.classes == ["bright", "dull", "warm"]
    smooth = MEMBERSHIP.float() * 0.9 + 0.05
    final, inputs = plain_loop(lists, 3, lambda out: F.binary_cross_entropy_with_logits(out, smooth), 0.05)
    state = load_file(run / "model.safetensors")
    torch.testing.assert_close(state["classifier.8.weight"], final.weight.detach(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(state["classifier.8.bias"], final.bias.detach(), atol=1e-6, rtol=1e-4)
    assert json.loads((run / "config.json").read_text())["task"] == "labels"
    # What it predicts, and how good that is.
    logits = final(inputs).detach()
    predictor = featx.Predictor(run)
    paths = sorted(lists.glob("*.png"))
    np.testing.assert_allclose(predictor.scores(paths), logits, atol=1e-3)
    named = [prediction.label for prediction in predictor.predict(paths)]
    assert named == ["|".join(np.array(report.classes)[row > 0]) for row in logits.numpy()]
    predictor.close()
    evaluated = featx.evaluate_head(run, lists / "labels.csv")
    assert evaluated.layer == "logits"
    measured = evaluated.metrics
    expected = [average_precision_score(MEMBERSHIP[:, k], logits[:, k]) for k in range(3)]
    assert measured.mean_average_precision == pytest.approx(np.mean(expected), abs=1e-6)
    featx.predict_images(run, lists, tmp_path / "p.csv")
    first = (tmp_path / "p.csv").read_text().splitlines()[1].split(",")
    assert [float(number) for number in first[2:5]] == pytest.approx(torch.sigmoid(logits[0]).tolist(), abs=1e-4)


def test_several_classes_start_at_an_optimum_and_keep_the_best_epoch(lists, tmp_path):
    report = featx.finetune_network(
        lists / "labels.csv", tmp_path / "run", options(init_head="softmax", val=0.3, lr="*=0, fc8=1e-9", epochs=1)
    )
    assert report.start is not None
    assert report.start > 0.8
    assert report.metrics.mean_average_precision == pytest.approx(report.start, abs=1e-6)
    assert "before: mean average precision" in str(report)
    checked = featx.verify_file(tmp_path / "run", featx.VerifyConfig(source=str(lists / "labels.csv")))
    assert checked.passed


def test_numbers_are_trained_and_given_in_their_own_units(lists, tmp_path):
    run = tmp_path / "run"
    report = featx.finetune_network(lists / "values.csv", run, options(task="values", val=0.0))
    lines = (lists / "values.csv").read_text().splitlines()[1:]
    values = np.array([[float(word) for word in line.split(",")[1].split("|")] for line in lines])
    mean, deviation = values.mean(0), values.std(0)
    scaled = torch.from_numpy((values - mean) / deviation).float()
    final, inputs = plain_loop(lists, 2, lambda out: F.mse_loss(out, scaled), 0.05)
    predicted = final(inputs).detach().double().numpy() * deviation + mean
    assert featx.predict_images(run, lists / "values.csv", lists / "p.csv").predicted == {}  # numbers are no classes
    table = pd.read_csv(lists / "p.csv")
    assert list(table) == ["path", "value1", "value2", "error"]
    np.testing.assert_allclose(table[["value1", "value2"]], predicted, rtol=1e-4)
    predictor = featx.Predictor(run)
    np.testing.assert_allclose(predictor.scores(sorted(lists.glob("*.png"))), predicted, rtol=1e-4)
    label = predictor.predict(sorted(lists.glob("*.png"))[:1])[0].label
    assert [float(part) for part in label.split("|")] == pytest.approx(predicted[0], rel=1e-3)
    predictor.close()
    assert report.classes == ["value1", "value2"]
    assert report.metrics is None
    measured = featx.evaluate_head(run, lists / "values.csv").metrics
    expected = [r2_score(values[:, k], predicted[:, k]) for k in range(2)]
    assert list(measured.r2.values()) == pytest.approx(expected, abs=1e-3)
    assert list(measured.mean_squared_error.values()) == pytest.approx(((predicted - values) ** 2).mean(0), rel=1e-3)
    # The weights are those of the plain network.
    plain = construct("alexnet-mini", seed=0)
    replace_final_layer(plain, 2)
    plain.load_state_dict(load_file(run / "model.safetensors"), strict=True)


def test_numbers_choose_the_best_epoch_by_r2(lists, tmp_path, capsys):
    report = featx.finetune_network(
        lists / "values.csv", tmp_path / "run", options(task="values", val=0.3, epochs=3, lr="*=0, fc8=0.2")
    )
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert report.best_epoch == max(entries, key=lambda entry: entry["val_r2"])["epoch"]
    assert report.metrics.mean_r2 == pytest.approx(max(entry["val_r2"] for entry in entries), abs=1e-6)
    assert featx.verify_file(tmp_path / "run", featx.VerifyConfig(source=str(lists / "values.csv"))).passed
    featx.evaluate_head(tmp_path / "run", lists / "values.csv", output=tmp_path / "page.html")
    assert "R²" in (tmp_path / "page.html").read_text()


def test_one_number_is_learnt_too_and_its_run_says_what_it_is(lists, tmp_path):
    lines = (lists / "values.csv").read_text().splitlines()
    (lists / "one.csv").write_text("\n".join([lines[0], *(line.split("|")[0] for line in lines[1:])]) + "\n")
    run = tmp_path / "run"
    report = featx.finetune_network(lists / "one.csv", run, options(task="values", val=0.3, snapshots="2"))
    assert report.classes == ["value"]
    assert featx.evaluate_head(run, lists / "one.csv").images == 20
    kept = load_file(run / "snapshots" / "epoch-000002.safetensors")
    state = load_file(run / "model.safetensors")
    assert report.best_epoch == 2  # of which the snapshot is
    torch.testing.assert_close(kept["classifier.8.weight"], state["classifier.8.weight"])
    with pytest.raises(UsageError, match="'prob'"):
        featx.extract_features(
            lists / "00.png", tmp_path / "f.h5", featx.ExtractConfig(backbone=str(run), layers="prob")
        )
    with pytest.raises(UsageError, match="gives numbers; what decides for a class"):
        featx.show_saliency([lists / "00.png"], tmp_path / "s", featx.SaliencyConfig(backbone=str(run)))
    # It goes on where it was, in its own units.
    more = featx.FinetuneConfig(backbone=str(run), continue_epochs=1, device="cpu", workers=1)
    featx.finetune_network(lists / "one.csv", tmp_path / "more", more)
    before = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    after = [json.loads(line) for line in (tmp_path / "more" / "metrics.jsonl").read_text().splitlines()]
    best = max(before, key=lambda entry: entry["val_r2"])
    assert after[0]["epoch"] == 0
    for key in ("val_r2", "val_loss"):
        assert after[0][key] == pytest.approx(best[key], rel=1e-4)


@pytest.mark.parametrize(
    ("label", "says"),
    [("tall", "the label 'tall' is no number"), ("1|2|3", "has 3 numbers and"), ("inf", "is no number")],
)
def test_labels_that_are_no_numbers_are_named(lists, tmp_path, label, says):
    text = (lists / "values.csv").read_text().replace("\n", "\n", 1).splitlines()
    text = [text[0], *(f"{lists}/{line}" for line in text[1:-1]), f"{lists}/{text[-1].split(',')[0]},{label}"]
    (tmp_path / "list.csv").write_text("\n".join(text) + "\n")
    with pytest.raises(LabelError) as caught:
        featx.finetune_network(tmp_path / "list.csv", tmp_path / "run", options(task="values"))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("source", "more", "says"),
    [
        ("labels.csv", {"class_weights": "balanced"}, "--class-weights is for one class per image"),
        ("labels.csv", {"score": "accuracy"}, "the best epoch is chosen by the mean average precision"),
        ("values.csv", {"task": "values", "score": "ap"}, "the best epoch is chosen by R²"),
        ("values.csv", {"task": "values", "label_smoothing": 0.1}, "--label-smoothing is for classes"),
    ],
)
def test_options_of_other_labels_are_refused(lists, tmp_path, source, more, says):
    with pytest.raises(UsageError, match=says):
        featx.finetune_network(lists / source, tmp_path / "run", options(**more))


# --- one class per image


def test_losses_and_validations_are_pytorchs_and_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    weights = np.array([1.0, 2.0, 0.5, 1.0])
    goal = OneClass("balanced", weights, 0.1, CPU)
    expected = F.cross_entropy(outputs, labels, weight=torch.from_numpy(weights).float(), label_smoothing=0.1)
    torch.testing.assert_close(goal.loss(outputs, labels), expected)
    assert goal.weight_of(labels.numpy()) == pytest.approx(weights[labels].sum())
    found = goal.validation(outputs, labels)
    assert found["val_loss"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)
    right = (outputs.argmax(1) == labels).numpy()
    assert found["val_accuracy"] == pytest.approx(right.mean())
    assert found["val_balanced"] == pytest.approx(np.mean([right[labels.numpy() == k].mean() for k in range(3)]))
    ranked = OneClass("ap", None, 0.0, CPU).validation(outputs, labels)["val_ap"]
    chances = outputs.softmax(1).numpy()
    assert ranked == pytest.approx(np.mean([average_precision_score(labels == k, chances[:, k]) for k in range(3)]))


def test_mixed_targets_have_their_shares():
    generator = torch.Generator().manual_seed(1)
    outputs, shares = torch.randn(6, 3, generator=generator), torch.rand(6, generator=generator)
    several = torch.randint(0, 2, (6, 3), generator=generator).float()
    said = SeveralClasses(0.0).validation(outputs, several)["val_loss"]
    assert said == pytest.approx(F.binary_cross_entropy_with_logits(outputs, several).item(), rel=1e-5)
    own, other = (torch.randint(0, 2, (6, 3), generator=generator).float() for _ in range(2))
    goal = SeveralClasses(0.0)
    blended = shares[:, None] * own + (1 - shares[:, None]) * other
    torch.testing.assert_close(
        goal.mixed_loss(outputs, own, other, shares), F.binary_cross_entropy_with_logits(outputs, blended)
    )
    assert goal.right(outputs, own) == pytest.approx(((outputs > 0) == (own > 0)).double().mean(1).sum().item())
    numbers = Numbers(np.array([[1.0], [3.0], [8.0]], np.float32))
    scaled = (torch.tensor([[3.0]]) - numbers.mean.item()) / numbers.deviation.item()
    torch.testing.assert_close(numbers.loss(scaled.float(), torch.tensor([[3.0]])), torch.tensor(0.0))
    outputs, own, other = torch.randn(6, 1), torch.rand(6, 1), torch.rand(6, 1)
    blended = shares[:, None] * own + (1 - shares[:, None]) * other
    torch.testing.assert_close(numbers.mixed_loss(outputs, own, other, shares), numbers.loss(outputs, blended))
    constant = Numbers(np.full((4, 1), 7.0, np.float32))
    assert constant.loss(torch.zeros(1, 1), torch.tensor([[7.0]])) == 0
    layer = nn.Linear(2, 1)
    state = {f"fc.{name}": tensor.detach().clone() for name, tensor in layer.state_dict().items()}
    numbers.in_units(state, ["fc"])
    x = torch.randn(5, 2, generator=generator)
    torch.testing.assert_close(
        x @ state["fc.weight"].T + state["fc.bias"],
        layer(x).detach() * numbers.deviation.item() + numbers.mean.item(),
    )


def test_the_best_epoch_is_that_of_the_score_and_weights_come_from_a_file(tmp_path):
    for index in range(24):
        write_photo(
            tmp_path / "photos" / ("rare" if index % 6 == 0 else "common") / f"{index:02d}.png", index, (64, 64)
        )
    (tmp_path / "w.csv").write_text("class,weight\nrare,5\ncommon,1\n")
    config = options(
        class_weights=str(tmp_path / "w.csv"), val=0.25, epochs=3, lr="*=0, fc8=0.5", batch_size=6, momentum=0.9
    )
    report = featx.finetune_network(tmp_path / "photos", tmp_path / "run", config)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"val_accuracy", "val_balanced", "val_loss"} <= set(entries[-1])
    best = max(entries, key=lambda entry: (entry["val_balanced"], -entry["val_loss"]))
    assert report.best_epoch == best["epoch"]
    (tmp_path / "w.csv").write_text("class,weight\nrare,5\n")
    with pytest.raises(UsageError, match="has no weight for class 'common'"):
        featx.finetune_network(tmp_path / "photos", tmp_path / "other", config)
