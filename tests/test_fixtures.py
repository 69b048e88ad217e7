"""Files that an earlier version made are read, used and recognised: tests/fixtures has some of version 0.1.0.

They are of 12 images, made again here, and of `featx extract -b alexnet-mini -l conv3,fc7 --pool avg`, `featx fit-svm -l
fc7 --c 1 --test 25%` and `featx finetune -b alexnet-mini --lr head --epochs 2 --val 0.25`. Of the run only the weights
that are not the shipped network's are stored.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import featx
from featx.networks.weights import weights_of
from featx.runtime.progress import ALREADY_THERE, Reporter

OLD = Path(__file__).parent / "fixtures" / "v0.1.0"
EXTRACT = featx.ExtractConfig(backbone="alexnet-mini", layers="conv3,fc7", pool="avg")
FINETUNE = featx.FinetuneConfig(backbone="alexnet-mini", lr="head", epochs=2, val=0.25)


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The old files, and the images they were made from."""
    folder = tmp_path_factory.mktemp("old") / "v0.1.0"
    shutil.copytree(OLD, folder)
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 160, (24, 20, 3), np.uint8)
        pixels[..., index % 3] += 90
        path = folder / "photos" / "abc"[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((80, 72), Image.Resampling.NEAREST).save(path)
    state = load_file(weights_of("alexnet-mini", "default").file) | load_file(folder / "run" / "changed.safetensors")
    save_file(state, folder / "run" / "model.safetensors")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_features_file_holds_what_is_extracted_today(old, tmp_path):
    stored = featx.open_features(old / "features.h5")
    featx.extract_features(old / "photos", tmp_path / "new.h5", EXTRACT)
    new = featx.open_features(tmp_path / "new.h5")
    assert (new.paths, new.classes, new.labels.tolist()) == (stored.paths, stored.classes, stored.labels.tolist())
    for layer in stored:  # bit for bit on the processor that made it; others round differently
        np.testing.assert_allclose(new[layer], stored[layer], rtol=0, atol=1e-5 * np.abs(stored[layer]).max())


def test_it_is_recognised_as_finished(old):
    before, notes = (old / "features.h5").read_bytes(), Notes()
    report = featx.extract_features(old / "photos", old / "features.h5", EXTRACT, reporter=notes)
    assert (report.done, report.computed) == (12, 0)
    assert (old / "features.h5").read_bytes() == before


def test_a_head_is_recognised_and_predicts_as_it_did(old, tmp_path):
    notes = Notes()
    config = featx.FitConfig(layer="fc7", c=1.0, test=0.25)
    report = featx.fit_svm(old / "features.h5", old / "head.safetensors", config, reporter=notes)
    assert report.metrics.accuracy == 1.0
    assert ALREADY_THERE in notes.lines
    featx.predict_images(old / "head.safetensors", old / "photos", tmp_path / "p.csv")
    compare(tmp_path / "p.csv", old / "head.csv")


def test_a_run_is_recognised_and_predicts_as_it_did(old, tmp_path):
    notes = Notes()
    shutil.copytree(old / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["plan"]["files"]  # these images are other files than the ones it was made from, of the same pixels
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    report = featx.finetune_network(old / "photos", tmp_path / "run", FINETUNE, reporter=notes)
    assert (report.epochs, report.metrics.accuracy) == (2, 1.0)
    assert ALREADY_THERE in notes.lines
    featx.predict_images(tmp_path / "run", old / "photos", tmp_path / "p.csv")
    compare(tmp_path / "p.csv", old / "run.csv")


def compare(new: Path, old: Path) -> None:
    for now, before in zip(table(new), table(old), strict=True):
        assert (now["path"], now["class"]) == (before["path"], before["class"])
        for name in ("score:a", "score:b", "score:c"):
            assert float(now[name]) == pytest.approx(float(before[name]), rel=1e-4, abs=1e-5)
