"""`featx report`: what it says is computed another way; the page in a browser; what it refuses."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from conftest import clusters, write_features, write_photo
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import featx as library
from featx.analysis.mistakes import cross_validate
from featx.reporting.page import Section, frame, paragraph, photos, render, table


def test_cross_validation_is_scikit_learns():
    values, labels = clusters(30, 3, 8, spread=2.0)
    labels = labels.astype(np.int32)
    copies = np.arange(90)
    copies[5] = 40
    found = cross_validate(values, np.arange(90), labels, copies, 3)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    right = np.zeros(90, int)
    for train, test in folds.split(values, labels, copies):
        scaler = StandardScaler().fit(values[train])
        machine = LinearSVC(C=0.01, loss="squared_hinge", intercept_scaling=1, max_iter=100_000, tol=1e-8)
        right[test] = machine.fit(scaler.transform(values[train]), labels[train]).predict(
            scaler.transform(values[test])
        )
    assert (found.predicted == right).mean() > 0.98
    assert ((found.margins > 0) == (found.predicted != labels)).all()
    assert (found.predicted != labels).any()


def test_nothing_of_others_leaves_its_place():
    bad = "<script>alert(1)</script>\"'"
    text = render(
        bad,
        [Section(bad, paragraph(bad) + table([bad], [[bad]]) + photos([np.zeros((2, 2, 3), np.uint8)], [bad]))],
        bad,
    ) + frame(f"<p>{bad}</p>", bad)  # fmt: skip
    assert "<script" not in text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for seed in range(30):
        write_photo(folder / "photos" / "ab"[seed % 2] / f"{seed:02d}.png", seed, (64, 64))
    config = library.ExtractConfig(backbone="alexnet-mini", layers="conv1,conv5,fc7", pool="avg", device="cpu")
    library.extract_features(folder / "photos", folder / "photos.h5", config)
    library.probe_layers(folder / "photos.h5", folder / "probe", library.ProbeConfig(per_class=5, repeats=1, c=1.0))
    library.finetune_network(
        folder / "photos", folder / "run", library.FinetuneConfig(backbone="alexnet-mini", lr="head", epochs=1)
    )
    return folder


def test_a_page_of_everything(made, tmp_path, featx):
    page = tmp_path / "report.html"
    done = featx("report", made / "run", made / "probe", made / "photos.h5", "-l", "conv5", "--photos",
                 made / "photos" / "a" / "00.png", "-o", page)  # fmt: skip
    assert done.status == 0, done.err
    text = page.read_text()
    assert text.count("http://") + text.count("https://") == 0
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Training", "Learning curves", "Confusion in validation", "Which layer transfers best", "What is inside",
        "Layers", "Map of conv5", "Confusion", "Worst mistakes", "Units", "Saliency",
    ]  # fmt: skip
    features = library.open_features(made / "photos.h5")
    values = features["conv5"].astype(float)
    values = (values - values.mean(0)) / np.linalg.norm(values - values.mean(0), axis=1, keepdims=True)
    alike = values @ values.T
    np.fill_diagonal(alike, -2)
    share = (features.labels[alike.argmax(1)] == features.labels).mean()
    assert f"<td>conv5</td><td>{share:.1%}</td>" in text
    copies = np.arange(30)
    found = cross_validate(features["conv5"], np.arange(30), features.labels, copies, 0)
    assert f"{(found.predicted == found.labels).mean():.1%} of 30 images are right" in text
    counts = confusion_matrix(features.labels, found.predicted)
    if counts[0, 1]:
        assert f"<tr><td>a</td><td>b</td><td>{counts[0, 1]}</td></tr>" in text
    first = page.read_bytes()
    assert featx("report", made / "run", made / "probe", made / "photos.h5", "-l", "conv5", "--photos",
                 made / "photos" / "a" / "00.png", "-o", page).status == 0  # fmt: skip
    assert page.read_bytes() == first


def test_pages_of_little(made, tmp_path, featx):
    write_features(tmp_path / "few.h5", np.eye(3, 5, dtype=np.float32), [-1, -1, -1], ())
    done = featx("report", tmp_path / "few.h5", "-o", tmp_path / "few.html")
    assert done.status == 0, done.err
    assert re.findall(r"<h2>(.*?)</h2>", (tmp_path / "few.html").read_text()) == ["What is inside", "Units"]
    moved = tmp_path / "moved"
    shutil.copytree(made / "photos", moved)
    library.extract_features(
        moved,
        tmp_path / "m.h5",
        library.ExtractConfig(backbone="alexnet-mini", layers="conv5", pool="max", device="cpu"),
    )
    shutil.rmtree(moved)
    done = featx("report", tmp_path / "m.h5", "-o", tmp_path / "m.html")
    assert done.status == 0, done.err
    text = (tmp_path / "m.html").read_text()
    assert "30 images cannot be read any more" in text
    assert "What units look for cannot be shown" in text


def test_what_is_no_report_is_said(made, tmp_path, featx):
    def refusal(*words):
        done = featx("report", *words)
        assert done.status == 2, done.err
        return done.err

    assert "call it x.html" in refusal(made / "photos.h5", "-o", tmp_path / "x.pdf")
    (tmp_path / "mine.html").write_text("my own notes")
    assert "exists and is no page" in refusal(made / "photos.h5", "-o", tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "my own notes"
    assert "is no features file" in refusal(tmp_path, "-o", tmp_path / "x.html")
    assert "no layer 'fc9'" in refusal(made / "photos.h5", "-l", "fc9", "-o", tmp_path / "x.html")
    assert "--layer is about a features file" in refusal(made / "run", "-l", "fc7", "-o", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_the_page_in_a_browser(made, tmp_path, featx):
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    assert featx("report", made / "photos.h5", "-o", tmp_path / "report.html").status == 0
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for width in (1200, 390):
            tab = browser.new_context(viewport={"width": width, "height": 800}, offline=True).new_page()
            said = []
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.goto((tmp_path / "report.html").as_uri())
            tab.locator("iframe").scroll_into_view_if_needed()
            inside = tab.frames[1]
            inside.locator("body[data-drawn]").wait_for(state="attached")
            assert inside.evaluate("sheet.complete")
            assert inside.locator("#legend button").count() == 2
            assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert said == []
        browser.close()
