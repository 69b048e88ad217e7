"""Predictions are made once, go on where a killed run has stopped, and are never put in place of others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from stopping import WITHOUT_TORCH, stop_half_way

from featx.artifacts.prediction_table import PredictionTable
from featx.commands.extract import extract_features
from featx.commands.fit import fit_softmax, fit_svm
from featx.commands.predict import predict_images, predict_with_heads
from featx.errors import PlanMismatch, TooManyBadImages, UsageError
from featx.extraction import pipeline
from featx.options.extraction import ExtractConfig, PredictConfig
from featx.options.heads import FitConfig
from featx.status import Status
from featx.store.open import open_features

OPTIONS = {"device": "cpu", "batch_size": 2}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a head and sixty photos of two classes, one of them broken."""
    folder = tmp_path_factory.mktemp("predict")
    for index in range(60):
        write_photo(folder / "photos" / ("dark" if index % 2 else "bright") / f"{index:02d}.jpg", index)
    chosen = ExtractConfig(
        backbone="squeezenet1_1", layers="features.5", weights="random:0", device="cpu", pool="avg", batch_size=2
    )
    extract_features(folder / "photos", folder / "f.h5", chosen)
    fit_softmax(folder / "f.h5", folder / "h.safetensors", FitConfig(c=1.0, test=0.0))
    (folder / "photos" / "bright" / "10.jpg").write_bytes(b"broken")
    return folder


def predict(folder: Path, table: Path, **options):
    return predict_images(
        folder / "h.safetensors", folder / "photos", table, PredictConfig(**{**OPTIONS, "max_bad": 0.1, **options})
    )


def command(folder: Path, table: Path) -> list[str]:
    return ["predict", str(folder / "h.safetensors"), str(folder / "photos"), "--device", "cpu", "--batch-size", "2",
            "--max-bad", "10%", "--workers", "1", "-o", str(table)]  # fmt: skip


def test_what_is_there_is_not_made_again_and_torch_is_not_loaded(fitted, tmp_path):
    table = tmp_path / "p.csv"
    first = predict(fitted, table)
    assert (first.images, first.failed) == (60, 1)
    before = table.stat()
    again = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command(fitted, table), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(again.stdout)
    assert (report["images"], report["failed"], report["predicted"]) == (60, 1, first.predicted)
    assert (table.stat().st_mtime_ns, table.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.csv.json"]


def test_other_predictions_are_refused_and_stay(fitted, tmp_path):
    table = tmp_path / "p.csv"
    predict(fitted, table)
    content = table.read_bytes()
    other = tmp_path / "other.safetensors"
    fit_softmax(fitted / "f.h5", other, FitConfig(c=0.1, test=0.0))
    for head, source, word in (
        (other, fitted / "photos", "head "),
        (fitted / "h.safetensors", fitted / "photos" / "dark", "other images"),
        (fitted / "h.safetensors", fitted / "f.h5", "other images"),
    ):
        with pytest.raises(PlanMismatch, match=f"is a table of predictions made with different settings: .*{word}"):
            predict_images(head, source, table, PredictConfig(**OPTIONS))
    with pytest.raises(PlanMismatch, match=r"made with different settings: --batch-size 2, now 4"):
        predict(fitted, table, batch_size=4)
    assert table.read_bytes() == content
    table.write_bytes(content.replace(b"bright", b"BRIGHT", 2))
    with pytest.raises(PlanMismatch, match="was changed after it was made"):
        predict(fitted, table)
    (tmp_path / "p.csv.json").write_text("[1")
    with pytest.raises(PlanMismatch, match=r"should say what made p\.csv, and does not"):
        predict(fitted, table)
    (
        tmp_path / "p.csv.json"
    ).unlink()  # a table of unknown origin may be replaced, as it was before there were records
    predict(fitted, table)
    assert table.read_bytes() == content


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_to_the_same_table(fitted, tmp_path, how):
    predict(fitted, tmp_path / "undisturbed.csv")
    table, half = tmp_path / "p.csv", tmp_path / "p.csv.scores.partial"
    stop_half_way(command(fitted, table), half, (table, PredictionTable(table).record_path), how)
    kept = open_features(half, partial=True)
    done = kept.status == Status.DONE
    assert 4 <= done.sum() < 60
    with pytest.raises(PlanMismatch, match=r"was begun with different settings"):
        predict(fitted, table, batch_size=4)
    other = tmp_path / "other.safetensors"
    fit_softmax(fitted / "f.h5", other, FitConfig(c=0.1, test=0.0))
    with pytest.raises(PlanMismatch, match=r"was begun with different settings: head "):
        predict_images(other, fitted / "photos", table, PredictConfig(**OPTIONS))
    before = np.array(kept["scores"][done])
    predict(fitted, table)
    assert table.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    assert np.isfinite(before).all()
    assert not half.exists()


def test_images_that_are_mended_are_tried_again(fitted, tmp_path):
    photos = tmp_path / "photos"
    for index in range(4):
        write_photo(photos / f"{index}.jpg", index)
    good = (photos / "2.jpg").read_bytes()
    (photos / "2.jpg").write_bytes(good[: len(good) // 2])
    words = fitted / "h.safetensors", photos, tmp_path / "p.csv", PredictConfig(**OPTIONS)
    with pytest.raises(Exception, match="1 of 4 images failed"):
        predict_images(*words)
    (photos / "2.jpg").write_bytes(good)
    assert predict_images(*words).failed == 0


def test_the_best_classes_are_those_of_the_whole_table(fitted, tmp_path):
    predict(fitted, tmp_path / "all.csv")
    predict(fitted, tmp_path / "top.csv", top=2)
    whole = [line.split(",") for line in (tmp_path / "all.csv").read_text().splitlines()]
    best = [line.split(",") for line in (tmp_path / "top.csv").read_text().splitlines()]
    assert best[0] == ["path", "class", "probability", "class2", "probability2", "error"]
    names = [column.removeprefix("score:") for column in whole[0][2:4]]
    for mine, row in zip(best[1:], whole[1:], strict=True):
        if row[-1]:
            assert mine == [row[0], "", "", "", "", row[-1]]
            continue
        ordered = sorted(zip(map(float, row[2:4]), names, strict=True), reverse=True)
        assert [mine[1], mine[3]] == [name for _, name in ordered]
        assert [float(mine[2]), float(mine[4])] == [value for value, _ in ordered]
    with pytest.raises(UsageError, match=r"--top 3: .* knows 2 classes"):
        predict(fitted, tmp_path / "x.csv", top=3)


def test_one_image_is_told_at_once_as_in_the_table(fitted, tmp_path):
    predict(fitted, tmp_path / "all.csv")
    row = next(
        line.split(",") for line in (tmp_path / "all.csv").read_text().splitlines() if line.startswith("dark/07.jpg")
    )
    report = predict_images(
        fitted / "h.safetensors", fitted / "photos" / "dark" / "07.jpg", config=PredictConfig(**OPTIONS)
    )
    assert (report.output, report.images) == (None, 1)
    assert report.best[0]["path"] == "07.jpg"
    assert report.best[0]["class"] == row[1]
    names = (tmp_path / "all.csv").read_text().split("\n")[0].replace("score:", "").split(",")[2:4]
    told = {name: f"{value:.6g}" for name, value in report.best[0]["classes"].items()}
    assert told == dict(zip(names, row[2:4], strict=True))
    assert str(report).startswith(f"07.jpg: {row[1]} 0.")
    broken = predict_images(
        fitted / "h.safetensors", fitted / "photos" / "bright" / "10.jpg", config=PredictConfig(**OPTIONS)
    )
    assert str(broken).startswith("10.jpg: no image of a known format")
    whole = predict_images(fitted / "h.safetensors", fitted / "photos", config=PredictConfig(**OPTIONS, max_bad=0.1))
    table = [line.split(",") for line in (tmp_path / "all.csv").read_text().splitlines()[1:]]
    assert [(one["path"], one["class"] or "", one["error"]) for one in whole.best] == [
        (r[0], r[1], r[-1]) for r in table
    ]
    with pytest.raises(TooManyBadImages):
        predict_images(fitted / "h.safetensors", fitted / "photos", config=PredictConfig(**OPTIONS, max_bad=0.0))
    assert "and 40 more; -o TABLE.csv" in str(whole)


def test_the_best_of_an_svm_without_probabilities_have_scores(fitted, tmp_path):
    fit_svm(fitted / "f.h5", tmp_path / "svm.safetensors", FitConfig(c=1.0, test=0.0))
    chosen = PredictConfig(**OPTIONS, max_bad=0.1, top=1)
    predict_images(tmp_path / "svm.safetensors", fitted / "photos", tmp_path / "p.csv", chosen)
    assert (tmp_path / "p.csv").read_text().startswith("path,class,score,error\n")


# --- several heads


@pytest.fixture(scope="module")
def heads(fitted):
    """A second head on the same layer and one on another, with the features of one network."""
    chosen = ExtractConfig(
        backbone="squeezenet1_1", layers="features.3,features.5", weights="random:0", device="cpu", pool="avg",
        batch_size=2, max_bad=1.0,
    )  # fmt: skip
    extract_features(fitted / "photos", fitted / "two.h5", chosen)
    fit_svm(fitted / "two.h5", fitted / "svm.safetensors", FitConfig(layer="features.5", c=1.0, test=0.0))
    fit_svm(fitted / "two.h5", fitted / "early.safetensors", FitConfig(layer="features.3", c=1.0, test=0.0))
    return [fitted / f"{name}.safetensors" for name in ("h", "svm", "early")]


ASKED = PredictConfig(**{**OPTIONS, "max_bad": 0.1})


def test_several_heads_see_each_image_once_and_give_the_tables_that_each_gives_alone(
    fitted, heads, tmp_path, monkeypatch
):
    for head in heads:
        predict_images(head, fitted / "photos", tmp_path / f"{head.stem}.csv", ASKED)
    seen = []
    compute = pipeline.compute_block
    monkeypatch.setattr(
        pipeline,
        "compute_block",
        lambda e, r, block, *rest: (seen.append(len(block.status)), compute(e, r, block, *rest)),
    )
    report = predict_with_heads(heads, fitted / "photos", tmp_path / "all", ASKED)
    assert sum(seen) == 60
    assert [one.output for one in report.heads] == [tmp_path / "all" / f"{head.stem}.csv" for head in heads]
    for head in heads:
        assert (tmp_path / "all" / f"{head.stem}.csv").read_bytes() == (tmp_path / f"{head.stem}.csv").read_bytes()
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(
        f"{head.stem}.csv{end}" for head in heads for end in ("", ".json")
    )
    # a table that was lost, as by a kill between two of them, is made again, and the others are left alone
    before = (tmp_path / "all" / "h.csv").stat().st_mtime_ns
    (tmp_path / "all" / "svm.csv").unlink()
    predict_with_heads(heads, fitted / "photos", tmp_path / "all", ASKED)
    assert (tmp_path / "all" / "svm.csv").read_bytes() == (tmp_path / "svm.csv").read_bytes()
    assert (tmp_path / "all" / "h.csv").stat().st_mtime_ns == before
    predict_with_heads(heads, fitted / "two.h5", tmp_path / "of-features", ASKED)
    for head in heads:
        assert (tmp_path / "of-features" / f"{head.stem}.csv").read_bytes() == (
            tmp_path / f"{head.stem}.csv"
        ).read_bytes()


def test_heads_that_do_not_go_together_are_refused(featx, fitted, heads, tmp_path):
    other = ExtractConfig(
        backbone="squeezenet1_1", layers="features.5", weights="random:0", device="cpu", pool="avg", mirror=True,
        max_bad=1.0,
    )  # fmt: skip
    extract_features(fitted / "photos", tmp_path / "m.h5", other)
    fit_svm(tmp_path / "m.h5", tmp_path / "mirrored.safetensors", FitConfig(c=1.0, test=0.0))
    with pytest.raises(UsageError, match=r"made in different ways \(preprocess\.mirror false and true\)"):
        predict_with_heads([heads[0], tmp_path / "mirrored.safetensors"], fitted / "photos", tmp_path / "all", ASKED)
    with pytest.raises(UsageError, match="two heads are called h"):
        predict_with_heads([heads[0], heads[0]], fitted / "photos", tmp_path / "all", ASKED)
    said = featx("predict", *heads, fitted / "photos")
    assert (said.status, "-o FOLDER" in said.err) == (2, True)
