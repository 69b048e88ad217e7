"""Maps and neighbours against scikit-learn and brute force; the page in a browser; the commands as a user runs them."""

from __future__ import annotations

import csv
import glob
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import clusters, write_features, write_photo
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.manifold import trustworthiness as right_trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from featx.analysis.embedding import principal_components, purity, trustworthiness, tsne
from featx.analysis.grid import to_grid
from featx.analysis.nearest import Space, mean_row
from featx.figures.map_page import map_page, page


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_trustworthiness_is_scikit_learns():
    generator = np.random.default_rng(0)
    values, points = generator.normal(size=(90, 7)), generator.normal(size=(90, 2))
    points[:40] = values[:40, :2]
    found = trustworthiness(values, points, 9, np.arange(90))
    assert found == pytest.approx(right_trustworthiness(values, points, n_neighbors=9), abs=1e-12)


def test_purity_is_counted():
    points = np.array([[0.0, 0], [0, 1], [0, 2], [9, 0], [9, 1], [9, 2]])
    labels = np.array([0, 0, 1, 1, -1, 1], np.int32)
    # nearest two: 0 -> 1, 2; 1 -> 0, 2; 2 -> 1, 0; 3 -> 4, 5; 5 -> 4, 3
    assert purity(points, labels, 2, np.arange(6)) == pytest.approx(np.mean([0.5, 0.5, 0, 0.5, 0.5]))
    assert np.isnan(purity(points, np.full(6, -1, np.int32), 2, np.arange(6)))


def test_a_map_keeps_clusters_and_repeats():
    values, labels = clusters(60, 4, 30, spread=0.3)
    reduced = principal_components(values, 10, 0)
    right = values - values.mean(0)
    np.testing.assert_allclose(
        np.abs(reduced[:, 0]), np.abs(right @ np.linalg.svd(right, full_matrices=False)[2][0]), rtol=1e-3, atol=1e-4
    )
    steps = []
    points = tsne(reduced, perplexity=30, seed=1, advance=steps.append)
    assert sum(steps) == 750
    assert purity(points, labels.astype(np.int32), 10, np.arange(240)) > 0.95
    assert trustworthiness(reduced, points, 10, np.arange(240)) > 0.9
    np.testing.assert_array_equal(points, tsne(reduced, perplexity=30, seed=1))


@pytest.mark.parametrize("count", [4, 7, 60, 100])
def test_a_small_grid_is_the_best_assignment(count):
    points = np.random.default_rng(count).normal(size=(count, 2))
    cells = to_grid(points)
    assert len({tuple(cell) for cell in cells.tolist()}) == count
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    low, high = points.min(0), points.max(0)
    places = (points - low) / (high - low) * (columns - 1, rows - 1)
    every = np.array([(x, y) for y in range(rows) for x in range(columns)], float)
    far = ((places[:, None] - every[None]) ** 2).sum(2)
    best = far[linear_sum_assignment(far)].sum()
    own = ((places - cells[:, ::-1]) ** 2).sum()
    assert own == pytest.approx(best)


def test_a_large_grid_is_close_to_the_best(monkeypatch):
    points = np.random.default_rng(0).normal(size=(1300, 2))
    best = to_grid(points)
    monkeypatch.setattr("featx.analysis.grid.MOST_EXACT", 100)
    found = to_grid(points)
    assert len({tuple(cell) for cell in found.tolist()}) == 1300
    columns = int(np.ceil(np.sqrt(1300)))
    assert found.min() == 0
    assert found.max() < columns
    low, high = points.min(0), points.max(0)
    places = (points - low) / (high - low) * (columns - 1, -(-1300 // columns) - 1)
    costs = [((places - cells[:, ::-1]) ** 2).sum() for cells in (best, found)]
    assert costs[1] < 1.15 * costs[0]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("centred", [True, False])
def test_distances_are_those_of_scipy(metric, centred, monkeypatch):
    from scipy.spatial.distance import cdist

    values = np.random.default_rng(0).normal(1, 1, size=(50, 6)).astype(np.float32)
    monkeypatch.setattr("featx.analysis.nearest._BYTES_AT_ONCE", 8 * 6 * 7)
    centre = mean_row(values, np.arange(50)) if centred else None
    space = Space(values, metric, centre)
    moved = values.astype(float) - (values.astype(float).mean(0) if centred else 0)
    right = cdist(moved[3:4], moved, metric)[0]
    np.testing.assert_allclose(space.distances(values[3]), right, atol=1e-12)
    rows, distances = space.nearest(values[3], 9)
    assert rows.tolist() == np.argsort(right, kind="stable")[:9].tolist()
    assert (np.diff(distances) >= 0).all()


def test_votes_are_those_of_scikit_learn_leaving_one_out():
    values, labels = clusters(20, 3, 5, spread=2.0)
    values[7], labels[7] = values[50], labels[50]  # a copy
    copies = np.arange(60)
    copies[7] = 50
    labels = labels.astype(np.int32)
    labels[11] = -1
    space = Space(values, "euclidean")
    rows = np.flatnonzero(labels >= 0)
    found = space.votes(rows, copies, labels, (1, 5))
    for which, k in enumerate((1, 5)):
        for place, row in enumerate(rows):
            others = [other for other in rows if copies[other] != copies[row]]
            order = sorted(others, key=lambda other: float(((values[other] - values[row]).astype(float) ** 2).sum()))
            first = labels[order[:k]].tolist()
            most = max(first.count(label) for label in first)
            assert found[which, place] == next(label for label in first if first.count(label) == most)
    model = KNeighborsClassifier(1).fit(values[rows[1:]], labels[rows[1:]])
    assert found[0, 0] == model.predict(values[rows[:1]])[0]


@pytest.fixture
def file(tmp_path, featx):
    for seed in range(24):
        write_photo(tmp_path / "photos" / "ab"[seed % 2] / f"{seed:02d}.png", seed, (70, 64))
    shutil.copy(tmp_path / "photos" / "a" / "02.png", tmp_path / "photos" / "b" / "copy.png")
    done = featx("extract", tmp_path / "photos", "-b", "alexnet-mini", "-l", "conv5,fc7", "--pool", "avg", "-o",
                 tmp_path / "photos.h5")  # fmt: skip
    assert done.status == 0, done.err
    return tmp_path / "photos.h5"


def test_show_map(file, tmp_path, featx):
    command = ("show", "map", file, "-l", "fc7", "-o", tmp_path / "map")
    done = featx(*command)
    assert done.status == 0, done.err
    with np.load(tmp_path / "map" / "map.npz") as numbers:
        assert numbers["points"].shape == (25, 2)
        assert len({tuple(cell) for cell in numbers["cells"].tolist()}) == 25
        points = numbers["points"].copy()
    rows = table_of(tmp_path / "map" / "map.csv")
    assert [row["path"] for row in rows][:2] == ["a/00.png", "a/02.png"]
    assert rows[0]["class"] == "a"
    text = (tmp_path / "map" / "map.html").read_text()
    assert text.count("http://") + text.count("https://") == 0
    record = tmp_path / "map" / "show.json"
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({**kept, "files": [], "columns": ["unfinished"], "rows": []}))
    (tmp_path / "map" / "map.html").unlink()
    assert featx(*command).status == 0  # goes on from its points
    with np.load(tmp_path / "map" / "map.npz") as numbers:
        np.testing.assert_array_equal(numbers["points"], points)
    assert (tmp_path / "map" / "map.html").read_text() == text

    shutil.rmtree(tmp_path / "photos")
    done = featx("show", "map", file, "-l", "fc7", "-o", tmp_path / "gone")
    assert done.status == 0
    assert "25 images of 25 cannot be read any more" in done.err


def test_what_no_map_can_be_made_of(tmp_path, featx):
    write_features(tmp_path / "few.h5", np.eye(3, 5, dtype=np.float32), [0, 1, 1], ("a", "b"))
    done = featx("show", "map", tmp_path / "few.h5", "-o", tmp_path / "map")
    assert done.status == 2
    assert "3 images; a map needs 4" in done.err
    write_features(tmp_path / "same.h5", np.ones((9, 5), np.float32), [0] * 9, ("a",))
    done = featx("show", "map", tmp_path / "same.h5", "-o", tmp_path / "map2")
    assert "is the same for all images" in done.err
    done = featx(
        "show", "map", tmp_path / "same.h5", "--method", "umap", "--perplexity", "5", "-o", tmp_path / "map2"
    )
    assert done.status == 2
    assert "--perplexity" in done.err


def test_show_neighbors(file, tmp_path, featx):
    done = featx("show", "neighbors", file, "--query", "1,3", "--k", "4", "-o", tmp_path / "near")
    assert done.status == 0, done.err
    rows = table_of(tmp_path / "near" / "neighbors.csv")
    assert len(rows) == 2 * 2 * 4
    from featx import open_features

    features = open_features(file)
    for layer in ("conv5", "fc7"):
        values = features[layer].astype(float)
        moved = values - values.mean(0)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        far = 1 - moved @ moved[1]
        copy = features.paths.index("b/copy.png")
        right = [row for row in np.argsort(far) if row not in (1, copy)][:4]
        own = [row for row in rows if (row["query"], row["layer"]) == ("row-1", layer)]
        assert [int(row["row"]) for row in own] == right
        np.testing.assert_allclose([float(row["distance"]) for row in own], far[right], rtol=1e-6)
    with Image.open(tmp_path / "near" / "row-3.png") as picture:
        assert picture.size[0] > 600

    image = next((tmp_path / "photos" / "a").glob("02.png"))
    done = featx("show", "neighbors", file, "--query", image, "--k", "4", "-o", tmp_path / "image")
    assert done.status == 0, done.err
    again = table_of(tmp_path / "image" / "neighbors.csv")
    assert [row["row"] for row in again] == [row["row"] for row in rows if row["query"] == "row-1"]
    for query, reason in (("99", "is none of its 25"), ("nothing.jpg", "no such image"), ("1,x", "no such image")):
        done = featx("show", "neighbors", file, "--query", query, "-o", tmp_path / "no")
        assert done.status == 2
        assert reason in done.err


def test_text_of_others_cannot_leave_the_page():
    bad = "</script><script>alert(1)</script>$data<b>"
    labels = np.zeros(4, np.int32)
    text = map_page(
        np.random.default_rng(0).normal(size=(4, 2)), np.zeros((4, 8, 8, 3), np.uint8), [bad] * 4, labels, [bad],
        title=bad, summary=bad,
    )  # fmt: skip
    assert text.count("<script>alert") == 0
    assert text.count("</script>") == 2
    with pytest.raises(KeyError):
        page("map.html", title="without the summary")


def chromium():
    found = shutil.which("chromium") or next(iter(glob.glob("/usr/bin/chromium*")), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    return found


def until(frame, condition):
    """Wait for it; the page's own policy forbids what Playwright's waiting does."""
    end = time.monotonic() + 30
    while not frame.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.05)


def test_the_page_in_a_browser_with_ten_thousand_images(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    program, count = chromium(), 10_000
    generator = np.random.default_rng(0)
    labels = generator.integers(-1, 12, count).astype(np.int32)
    coarse = generator.integers(0, 256, (count, 6, 6, 3), np.uint8)
    pictures = np.stack(
        [np.asarray(Image.fromarray(one).resize((48, 48), Image.Resampling.BICUBIC)) for one in coarse]
    )
    text = map_page(
        generator.normal(size=(count, 2)) + labels[:, None] * 0.7, pictures,
        [f"photo {place}.jpg" for place in range(count)], labels, [f"class {label}" for label in range(12)],
        title="ten thousand", summary="of noise",
    )  # fmt: skip
    assert len(text) < 20e6
    (tmp_path / "map.html").write_text(text)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_context(viewport={"width": 1100, "height": 700}, offline=True).new_page()
        said = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto((tmp_path / "map.html").as_uri())
        until(tab, "sheet.complete && Number(document.body.dataset.drawn) > 0")
        assert tab.locator("#legend button").count() == 12
        started_at = time.perf_counter()
        before = tab.evaluate("scale")
        box = tab.locator("#view").bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for _ in range(5):
            tab.mouse.wheel(0, -240)
        until(tab, f"scale > {before} * 2")
        assert time.perf_counter() - started_at < 20  # it answers
        tab.evaluate(
            "left = view.width / 2 - data.x[17] * scale; top_ = view.height / 2 - data.y[17] * scale; draw()"
        )
        tab.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2)
        until(tab, "!about.hidden")
        assert tab.locator("#what").inner_text().startswith("photo 17.jpg")
        tab.get_by_role("button", name="class 3").click()
        assert tab.evaluate("chosen") == 3
        assert tab.get_by_role("button", name="class 3").get_attribute("aria-pressed") == "true"
        tab.locator("#photos").uncheck()
        tab.get_by_role("button", name="whole map").focus()
        tab.keyboard.press("Enter")
        assert tab.evaluate("Math.abs(left - (view.width - scale) / 2) < 1")
        if os.environ.get("PAGE_PICTURES"):
            tab.screenshot(path=str(Path(os.environ["PAGE_PICTURES"]) / "map.png"))
        browser.close()
    assert said == []
