"""A report that is kept is made once, goes on where a killed run has stopped, and is never put in place of another."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from stopping import WITHOUT_TORCH, stop_half_way, swap

from featx.commands.evaluate import evaluate_head
from featx.commands.extract import extract_features
from featx.commands.finetune import finetune_network
from featx.commands.fit import fit_svm
from featx.commands.predict import predict_images
from featx.errors import PlanMismatch, TooManyBadImages, UsageError
from featx.options.extraction import EvaluateConfig, ExtractConfig, PredictConfig
from featx.options.heads import FitConfig
from featx.options.training import FinetuneConfig
from featx.status import Status
from featx.store.open import open_features

OPTIONS = EvaluateConfig(device="cpu", batch_size=2, max_bad=0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sixty photos of two classes, one of them broken, a run, a head and features."""
    folder = tmp_path_factory.mktemp("evaluate")
    for index in range(60):
        write_photo(folder / "photos" / ("dark" if index % 2 else "bright") / f"{index:02d}.jpg", index)
    chosen = ExtractConfig(backbone="alexnet-mini", layers="fc7", weights="random:0", device="cpu", batch_size=2)
    extract_features(folder / "photos", folder / "f.h5", chosen)
    fit_svm(folder / "f.h5", folder / "h.safetensors", FitConfig(c=1.0, test=0.0))
    training = FinetuneConfig(backbone="alexnet-mini", weights="random:0", lr="head", epochs=1, val=0.0, device="cpu")
    finetune_network(folder / "photos", folder / "run", training)
    (folder / "photos" / "bright" / "10.jpg").write_bytes(b"broken")
    return folder


def command(folder: Path, report: Path) -> list[str]:
    return ["evaluate", str(folder / "run"), str(folder / "photos"), "--device", "cpu", "--batch-size", "2",
            "--workers", "1", "--max-bad", "10%", "-o", str(report)]  # fmt: skip


def test_a_kept_report_is_that_of_the_predictions_and_torch_is_not_loaded_again(trained, tmp_path):
    kept = tmp_path / "report.json"
    first = evaluate_head(trained / "run", trained / "photos", OPTIONS, output=kept)
    assert (first.images, first.left_out) == (59, 1)
    predict_images(trained / "run", trained / "photos", tmp_path / "p.csv", PredictConfig(max_bad=0.1))
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    right = [row[1] == row[0].split("/")[0] for row in rows if row[1]]
    assert first.metrics.accuracy == pytest.approx(np.mean(right))
    before = kept.stat()
    again = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command(trained, kept), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(again.stdout) == first.to_json() == json.loads(kept.read_text())["report"]
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.csv.json", "report.json"]


def test_a_head_on_the_file_it_was_fitted_on_is_said_to_be_judged_by_what_it_knows(trained, tmp_path, featx):
    own = featx("evaluate", trained / "h.safetensors", trained / "f.h5")
    said = re.search(r"note: (\d+) of these images are among those it was trained on", own.out)
    assert said is not None
    assert f"on {said[1]} images" in own.out
    chosen = ExtractConfig(backbone="alexnet-mini", layers="fc7", weights="random:0", device="cpu", batch_size=2)
    extract_features(trained / "photos", tmp_path / "g.h5", replace(chosen, max_bad=0.1))
    other = featx("evaluate", trained / "h.safetensors", tmp_path / "g.h5")
    assert re.search(r"note: \d+ of these images are among those", other.out)  # the same images in another file


def test_of_a_head_too(trained, tmp_path):
    kept = tmp_path / "report.json"
    first = evaluate_head(trained / "h.safetensors", trained / "f.h5", output=kept)
    assert first.metrics == evaluate_head(trained / "h.safetensors", trained / "f.h5").metrics
    assert evaluate_head(trained / "h.safetensors", trained / "f.h5", output=kept) == first


def test_other_reports_and_other_files_are_refused_and_stay(trained, tmp_path):
    kept = tmp_path / "report.json"
    evaluate_head(trained / "run", trained / "photos", OPTIONS, output=kept)
    content = kept.read_bytes()
    with pytest.raises(PlanMismatch, match=r"made with different settings: .*head .* Choose another output with -o"):
        evaluate_head(trained / "h.safetensors", trained / "f.h5", output=kept)
    with pytest.raises(PlanMismatch, match="is a report made with different settings: other images"):
        evaluate_head(trained / "run", trained / "photos" / "dark", OPTIONS, output=kept)
    with pytest.raises(PlanMismatch, match="batch_size 2, now 4"):
        evaluate_head(trained / "run", trained / "photos", EvaluateConfig(batch_size=4), output=kept)
    others = tmp_path / "photos"  # of the same names
    shutil.copytree(trained / "photos", others, copy_function=shutil.copyfile)  # and the same images
    before = kept.stat()
    assert evaluate_head(trained / "run", others, OPTIONS, output=kept).to_json() == json.loads(content)["report"]
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    swap(others / "dark" / "11.jpg", others / "dark" / "13.jpg")
    with pytest.raises(PlanMismatch, match=r"report\.json was made from other images of the same names"):
        evaluate_head(trained / "run", others, OPTIONS, output=kept)
    assert kept.read_bytes() == content
    for other in (b"[1", b"{}", b'{"plan": {}, "report": {"metrics": 3}, "format": "featx evaluation"}', b"\xff"):
        kept.write_bytes(other)
        with pytest.raises(UsageError, match=r"report\.json exists and is not a report of featx evaluate"):
            evaluate_head(trained / "run", trained / "photos", OPTIONS, output=kept)
        assert kept.read_bytes() == other


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_to_the_same_report(trained, tmp_path, how):
    evaluate_head(trained / "run", trained / "photos", OPTIONS, output=tmp_path / "undisturbed.json")
    kept, half = tmp_path / "report.json", tmp_path / "report.json.scores.partial"
    stop_half_way(command(trained, kept), half, [kept], how)
    assert 4 <= (open_features(half, partial=True).status == Status.DONE).sum() < 60
    others = tmp_path / "photos"  # of the same names
    shutil.copytree(trained / "photos", others)
    names = sorted(path.name for path in (others / "bright").iterdir())[:2]
    swap(*(others / "bright" / name for name in names))  # done already: bright comes first
    with pytest.raises(PlanMismatch, match=r"other images of the same names: 2 of \d+ differ \(first: bright/"):
        evaluate_head(trained / "run", others, OPTIONS, output=kept)
    evaluate_head(trained / "run", trained / "photos", OPTIONS, output=kept)
    assert kept.read_bytes() == (tmp_path / "undisturbed.json").read_bytes()
    assert not half.exists()
    half.touch()  # as if killed between the report and the end
    evaluate_head(trained / "run", trained / "photos", OPTIONS, output=kept)
    assert not half.exists()


def test_images_that_cannot_be_read_are_no_accuracy(trained, tmp_path):
    with pytest.raises(TooManyBadImages, match="1 of 60 images failed"):
        evaluate_head(trained / "run", trained / "photos", EvaluateConfig(), output=tmp_path / "r.json")
    for name in ("dark", "bright"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "1.jpg").write_bytes(b"broken")
    with pytest.raises(TooManyBadImages, match=r"none of the 2 images of .*bad could be read"):
        evaluate_head(trained / "run", tmp_path / "bad", EvaluateConfig(max_bad=1.0), output=tmp_path / "b.json")
    assert not list(tmp_path.glob("?.json"))


def test_a_head_on_images_has_the_measures_of_their_features(tmp_path):
    for index in range(24):
        write_photo(tmp_path / "photos" / "abc"[index % 3] / f"{index:02d}.jpg", index)
    for layers, options in (("conv4", {"pool": "avg"}), ("fc7", {"views": "corners", "resize": 80})):
        made = tmp_path / layers
        chosen = ExtractConfig(backbone="alexnet-mini", layers=layers, device="cpu", **options)
        extract_features(tmp_path / "photos", made / "f.h5", chosen)
        fit_svm(made / "f.h5", made / "h.safetensors", FitConfig(c=0.01, test=0.5))
        of_features = evaluate_head(made / "h.safetensors", made / "f.h5")
        of_images = evaluate_head(made / "h.safetensors", tmp_path / "photos", output=made / "r.json")
        assert of_images.metrics == of_features.metrics
        assert (of_images.images, of_images.kind, of_images.layer) == (24, "svm", layers)
        assert of_images.trained_on == of_features.trained_on == 12
        assert (
            evaluate_head(made / "h.safetensors", tmp_path / "photos", output=made / "r.json").metrics
            == of_images.metrics
        )


def test_a_head_is_measured_on_every_kind_of_source(tmp_path):
    for index in range(12):
        write_photo(tmp_path / "photos" / "ab"[index % 2] / f"{index:02d}.jpg", index)
    extract_features(tmp_path / "photos", tmp_path / "f.h5", ExtractConfig(backbone="alexnet-mini", device="cpu"))
    fit_svm(tmp_path / "f.h5", tmp_path / "h.safetensors", FitConfig(c=0.01, test=0.0))
    expected = evaluate_head(tmp_path / "h.safetensors", tmp_path / "f.h5").metrics
    for name in ("s.tar", "s-0.tar"):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(tmp_path / "photos", ".")
    for source in (tmp_path / "s.tar", tmp_path / "s-{0..0}.tar", f"file://{tmp_path}/photos"):
        assert evaluate_head(tmp_path / "h.safetensors", source).metrics == expected


@pytest.mark.parametrize("model", ["run", "h.safetensors"])
def test_the_page_shows_the_mistakes_and_the_report_lies_beside_it(trained, tmp_path, model):
    page = tmp_path / "report.html"
    of = trained / ("photos" if model == "run" else "f.h5")
    report = evaluate_head(trained / model, of, replace(OPTIONS, split=None), output=page)
    text = page.read_text()
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles[:3] == ["Summary", "Confusion", "Classes"]
    assert titles[-2:] == ["ROC", "Worst mistakes"]
    assert ("Reliability" in titles) is (model == "run")  # an SVM has no probabilities
    assert f"accuracy {report.metrics.accuracy:.1%}" in text
    wrong = report.images - sum(np.diag(report.metrics.confusion))
    shown = text[text.index("Worst mistakes</h2>") :].count("<li>")
    assert shown == min(wrong, 36)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["report"]["metrics"]["accuracy"] == report.metrics.accuracy
    before = page.stat().st_mtime_ns
    assert evaluate_head(trained / model, of, OPTIONS, output=page) == report
    assert page.stat().st_mtime_ns == before
    page.unlink()  # drawn again, although the report is there
    assert evaluate_head(trained / model, of, OPTIONS, output=page) == report
    assert page.read_text() == text
    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(UsageError, match="exists and is no page"):
        evaluate_head(trained / model, of, OPTIONS, output=tmp_path / "other.html")


def test_the_page_says_what_the_scores_say(tmp_path, monkeypatch):
    from conftest import clusters, write_features
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_curve

    from featx.heads.linear_head import LinearHead
    from featx.reporting import of_evaluation

    values, labels = clusters(per_class=30, classes=3, spread=4.0, seed=5)
    keep = np.r_[0:30, 30:50, 60:75]  # classes of 30, 20 and 15
    values, labels = values[keep], labels[keep]
    path = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"))
    fit_svm(path, tmp_path / "h.safetensors", FitConfig(c=0.01, per_class=5, normalize="none"))
    scores = LinearHead.load(tmp_path / "h.safetensors").scores(values)
    predicted = scores.argmax(1)
    drawn, asked = {}, []
    monkeypatch.setattr(
        of_evaluation,
        "draw_confusion",
        lambda counts, names, path, title: (drawn.update(confusion=counts), path.write_bytes(b"x")),
    )
    monkeypatch.setattr(
        of_evaluation, "draw_roc", lambda curves, path, title, of: (drawn.update(roc=curves), path.write_bytes(b"x"))
    )
    real = of_evaluation.thumbnails
    monkeypatch.setattr(
        of_evaluation, "thumbnails", lambda rows, content, side: (asked.extend(rows), real(rows, content, side))[1]
    )
    evaluate_head(tmp_path / "h.safetensors", path, output=tmp_path / "page.html")
    assert (drawn["confusion"] == confusion_matrix(labels, predicted)).all()
    for label, name in enumerate("abc"):
        wrong, right, _ = roc_curve(labels == label, scores[:, label])
        np.testing.assert_allclose(drawn["roc"][name][0], wrong)
        np.testing.assert_allclose(drawn["roc"][name][1], right)
    text = (tmp_path / "page.html").read_text()
    table = re.findall(r"<tr>(.*?)</tr>", text[text.index("<h2>Classes") : text.index("<h2>ROC")])[1:]
    found = [re.findall(r"<td>(.*?)</td>", line) for line in table]
    measured = precision_recall_fscore_support(labels, predicted, zero_division=0)
    expected = [
        [name, str(size), *(f"{value:.1%}" for value in each)]
        for name, size, *each in zip("abc", np.bincount(labels), *measured[:3], strict=True)
    ]
    assert found == expected
    assert len({tuple(line[2:]) for line in found}) == 3
    rows = np.flatnonzero(predicted != labels)
    margins = scores[rows, predicted[rows]] - scores[rows, labels[rows]]
    order = rows[np.argsort(-margins, kind="stable")][:36]
    assert asked == order.tolist()
    assert len(order) > 5
    captions = re.findall(r"<li><img [^>]*>(.*?)</li>", text[text.index("Worst mistakes</h2>") :])
    assert captions == [f"{'abc'[labels[row]]}, taken for {'abc'[predicted[row]]} ({row:06d}.jpg)" for row in order]
