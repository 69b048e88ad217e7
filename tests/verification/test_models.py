"""`verify` of heads and runs: damage and untrue reports are found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import clusters, write_features, write_photo
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from featx.commands.evaluate import evaluate_head
from featx.commands.finetune import finetune_network
from featx.commands.fit import fit_svm
from featx.commands.verify import verify_file
from featx.errors import FeatxError, FileFormatError, VerificationFailed, WeightsMismatch
from featx.heads.linear_head import METADATA, LinearHead
from featx.options.extraction import VerifyConfig
from featx.options.heads import FitConfig
from featx.options.training import FinetuneConfig

CLASSES = ("ant", "bee", "cow")


@pytest.fixture
def fitted(tmp_path):
    values, labels = clusters(seed=0, spread=3.0)
    features = write_features(tmp_path / "f.h5", values, labels, CLASSES, failed=(4,))
    fit_svm(features, tmp_path / "h.safetensors", FitConfig(c=1.0, test=0.3, seed=5, normalize="standard"))
    return tmp_path


def test_a_head_is_whole_and_its_numbers_are_found_again(fitted):
    assert verify_file(fitted / "h.safetensors").passed
    report = verify_file(fitted / "h.safetensors", VerifyConfig(source=str(fitted / "f.h5")))
    assert [check.name for check in report.checks] == ["contents, hash and report", "metrics"]


@pytest.mark.parametrize("what", ["a weight", "a class", "the report", "the preprocessing"])
def test_a_changed_head_is_refused_by_everybody(fitted, what):
    path = fitted / "h.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        described = json.loads(file.metadata()[METADATA])
    match what:
        case "a weight":
            tensors["weights"][1, 2] = np.nextafter(tensors["weights"][1, 2], 9.0)
        case "a class":
            described["classes"][0] = "ape"
        case "the report":
            described["report"]["metrics"]["accuracy"] = 0.99
        case "the preprocessing":
            described["recipe"]["preprocess"]["interpolation"] = "bicubic"
    save_file(tensors, path, {METADATA: json.dumps(described)})
    for use in (lambda: verify_file(path), lambda: evaluate_head(path, fitted / "f.h5")):
        with pytest.raises(FileFormatError, match="do not match their hash"):
            use()


def test_a_report_that_is_not_true_is_found_by_measuring_again(fitted):
    path = fitted / "h.safetensors"
    head = LinearHead.load(path)
    head.report["metrics"]["accuracy"] = 0.99
    head.save(path)
    assert verify_file(path).passed
    with pytest.raises(VerificationFailed, match=r"metrics: accuracy is 0\.\d+, the report says 0\.99"):
        verify_file(path, VerifyConfig(source=str(fitted / "f.h5")))
    values, labels = clusters(seed=1)
    other = write_features(fitted / "g.h5", values, labels, CLASSES)
    with pytest.raises(VerificationFailed, match="does not hold the features it was fitted on"):
        verify_file(path, VerifyConfig(source=str(other)))


def test_every_flip_of_a_head_is_noticed(fitted):
    path = fitted / "h.safetensors"
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    before = LinearHead.load(path)
    for place in generator.integers(0, len(whole), 200):
        flipped = bytearray(whole)
        flipped[place] ^= int(generator.integers(1, 256))
        path.write_bytes(flipped)
        try:
            found = LinearHead.load(path)
        except FeatxError:
            continue
        assert (found.classes, found.recipe, found.report) == (before.classes, before.recipe, before.report)
        assert (found.weights == before.weights).all()


def test_a_run_is_whole_and_its_numbers_are_found_again(tmp_path):
    for number in range(24):
        write_photo(tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg", number)
    chosen = FinetuneConfig(backbone="alexnet-mini", epochs=1, lr="head", batch_size=8, val=0.25, device="cpu")
    finetune_network(tmp_path / "photos", tmp_path / "run", chosen)
    assert verify_file(tmp_path / "run").passed
    report = verify_file(tmp_path / "run", VerifyConfig(source=str(tmp_path / "photos")))
    assert [check.name for check in report.checks][-1] == "metrics"
    described = json.loads((tmp_path / "run" / "report.json").read_text())
    true = described["metrics"]["accuracy"]
    described["metrics"]["accuracy"] = 1.0 - true
    (tmp_path / "run" / "report.json").write_text(json.dumps(described))
    if true != 0.5:
        with pytest.raises(VerificationFailed, match="metrics: accuracy"):
            verify_file(tmp_path / "run", VerifyConfig(source=str(tmp_path / "photos")))
    weights = tmp_path / "run" / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-100] ^= 1
    weights.write_bytes(flipped)
    with pytest.raises(WeightsMismatch, match="damaged or changed after the training"):
        verify_file(tmp_path / "run")
