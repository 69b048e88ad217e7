"""`featx.Predictor` decides as `featx predict` does, and says what its numbers are."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import write_photo
from scipy.special import softmax

import featx
from featx.errors import FileFormatError, ImageError, UsageError

NET = "alexnet-mini"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with photos of three classes, and the heads and the run that were made from them."""
    folder = tmp_path_factory.mktemp("made")
    for index in range(45):
        write_photo(folder / "photos" / "abc"[index % 3] / f"{index:02d}.jpg", index)
    config = featx.ExtractConfig(backbone=NET, layers="fc7")
    featx.extract_features(folder / "photos", folder / "f.h5", config)
    fit = featx.FitConfig(c=1.0, folds=3)
    featx.fit_svm(folder / "f.h5", folder / "svm.safetensors", fit)
    featx.fit_softmax(folder / "f.h5", folder / "softmax.safetensors", fit)
    for kind in ("temperature", "platt"):
        calibrated = featx.FitConfig(c=1.0, folds=3, calibrate=kind)
        featx.fit_svm(folder / "f.h5", folder / f"{kind}.safetensors", calibrated)
    tuned = featx.FinetuneConfig(backbone=NET, lr="head", epochs=1)
    featx.finetune_network(folder / "photos", folder / "run", tuned)
    return folder


MODELS = ["svm.safetensors", "softmax.safetensors", "temperature.safetensors", "platt.safetensors", "run"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name.startswith(("softmax", "platt")) else ()) for name in MODELS],
)
def test_its_decisions_are_those_of_the_command(name, made, tmp_path):
    featx.predict_images(made / name, made / "photos", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        table = list(csv.DictReader(file))
    paths = [made / "photos" / row["path"] for row in table]
    with featx.Predictor(made / name) as predictor:
        found = predictor.predict(paths)
        alone = [predictor.predict(path)[0] for path in paths]
        assert predictor.classes == ["a", "b", "c"]
        outputs = predictor._rule.outputs(predictor.scores(paths))
    assert [one.label for one in found] == [one.label for one in alone] == [row["class"] for row in table]
    printed = np.array([[float(row[f"score:{k}"]) for k in "abc"] for row in table])
    np.testing.assert_allclose(outputs, printed, rtol=1e-4, atol=1e-6)  # six digits are printed


@pytest.mark.parametrize("name", MODELS)
def test_a_prediction_says_what_its_numbers_are(name, made):
    paths = sorted((made / "photos").rglob("*.jpg"))[:7]
    predictor = featx.Predictor(made / name)
    scores = predictor.scores(paths)
    assert scores.shape == (7, 3)
    for row, one in enumerate(predictor.predict(paths, top=2)):
        order = np.argsort(-scores[row])[:2]
        assert list(one.scores) == [predictor.classes[k] for k in order]
        assert list(one.scores.values()) == pytest.approx(scores[row][order].tolist(), rel=1e-9)
        assert one.label == predictor.classes[order[0]]
        if name in ("softmax.safetensors", "run"):
            assert one.probability == pytest.approx(softmax(scores[row]).max(), rel=1e-6)
        elif name == "svm.safetensors":
            assert one.probability is None
        else:
            assert 0 < one.probability < 1


def test_the_scores_of_a_head_are_the_definition_applied_to_its_features(made):
    head = featx.LinearHead.load(made / "svm.safetensors")
    features = featx.open_features(made / "f.h5")["fc7"].astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = unit @ head.weights.T + head.bias
    paths = [made / "photos" / path for path in featx.open_features(made / "f.h5").paths]
    np.testing.assert_allclose(featx.Predictor(made / "svm.safetensors").scores(paths), expected, rtol=1e-12)


def test_images_that_failed_have_no_class(made):
    path = next((made / "photos").rglob("*.jpg"))
    with pytest.raises(ImageError, match="1 image of 2 cannot be used: image 1: not an image"):
        featx.Predictor(made / "svm.safetensors").predict([path, b"nothing"])
    found = featx.Predictor(made / "svm.safetensors", on_error="nan").predict([path, b"nothing"])
    assert (found[1].label, found[1].probability, found[1].scores) == (None, None, {})
    assert found[0].label in "abc"


def test_bad_requests_are_refused(made, tmp_path):
    with pytest.raises(UsageError, match="top is 4; it must be from 1 to 3, the number of classes"):
        featx.Predictor(made / "svm.safetensors").predict([], top=4)
    with pytest.raises(UsageError, match="on_error is 'no'"):
        featx.Predictor(made / "svm.safetensors", on_error="no")
    with pytest.raises(FileFormatError, match="features file and no head"):
        featx.Predictor(made / "f.h5")
    with pytest.raises(UsageError, match="--weights-file says where the network of a head has its weights"):
        featx.Predictor(made / "run", weights_file="weights.pth")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes((made / "run" / "config.json").read_bytes())
    with pytest.raises(FileFormatError, match="is not finished"):
        featx.Predictor(tmp_path / "run")


def test_a_head_of_stacked_views_takes_images_in_memory(tmp_path):
    for index in range(8):
        write_photo(tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg", index)
    config = featx.ExtractConfig(backbone="alexnet-mini", device="cpu", views="corners", aggregate="stack", resize=80)
    featx.extract_features(tmp_path / "photos", tmp_path / "f.h5", config)
    featx.fit_softmax(tmp_path / "f.h5", tmp_path / "h.safetensors", featx.FitConfig(c=0.1, test=0.0))
    featx.predict_images(tmp_path / "h.safetensors", tmp_path / "photos", tmp_path / "p.csv")
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    with featx.Predictor(tmp_path / "h.safetensors", device="cpu") as predictor:
        found = predictor.predict([tmp_path / "photos" / row[0] for row in rows])
    assert [one.label for one in found] == [row[1] for row in rows]
