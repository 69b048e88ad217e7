"""`featx suspects` and `featx clean`: cleanlab as oracle, faults that were put in, the page in a browser."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from conftest import clusters, write_features, write_photo
from PIL import Image, ImageFilter

import featx
from featx.analysis.suspects.find import outlier_suspects
from featx.analysis.suspects.labels import doubts
from featx.analysis.suspects.photos import faults, look_at
from featx.errors import FileFormatError, PlanMismatch, UsageError
from featx.heads.selection.near_duplicates import Neighbourhood

CONFIG = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu")


@pytest.mark.parametrize("seed", range(3))
def test_doubts_are_cleanlabs(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, 300)
    logits = generator.normal(size=(300, 4)) + 2 * np.eye(4)[np.where(generator.random(300) < 0.1, 0, labels)]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = doubts(probabilities, labels)
    expected = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
    assert found.doubted.any()
    assert (found.doubted == expected).all()
    np.testing.assert_allclose(
        found.confidence, get_label_quality_scores(labels, probabilities, adjust_pred_probs=False), atol=1e-12
    )
    for row in np.flatnonzero(found.doubted):
        assert found.suggested[row] != labels[row]
        assert probabilities[row, found.suggested[row]] >= found.thresholds[found.suggested[row]]
    means = [probabilities[labels == k, k].mean() for k in range(4)]
    np.testing.assert_allclose(found.thresholds, means)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Photographs in two colours of light, with one fault of each kind."""
    folder = tmp_path_factory.mktemp("suspects")
    photos = folder / "photos"
    for number in range(24):
        for split in ("train", "test"):
            for label, colour in (("red", (1.0, 0.5, 0.4)), ("green", (0.4, 1.0, 0.5))):
                path = photos / split / label / f"{number:02d}.png"
                write_photo(path, number + 100 * (split == "test"))
                pixels = (
                    np.asarray(Image.open(path).convert("RGB")) * 0.8
                    + 40 * (np.indices((64, 80)).sum(0) % 2)[..., None]
                )
                Image.fromarray((pixels * colour).astype(np.uint8)).save(path)
    train = photos / "train"
    wrong = train / "green" / "wrong.png"
    pixels = np.asarray(Image.open(train / "red" / "05.png").convert("RGB"))[:, ::-1]
    Image.fromarray(pixels).save(wrong)
    (train / "red" / "copy.png").write_bytes((train / "red" / "07.png").read_bytes())
    (photos / "test" / "red" / "leak.png").write_bytes((train / "red" / "09.png").read_bytes())
    Image.open(train / "green" / "11.png").save(train / "green" / "again.jpg", quality=100, subsampling=0)
    Image.fromarray((np.asarray(Image.open(train / "red" / "12.png")) // 6).astype(np.uint8)).save(
        train / "red" / "dark.png"
    )
    Image.open(train / "red" / "13.png").filter(ImageFilter.GaussianBlur(9)).save(train / "red" / "blurred.png")
    Image.open(train / "green" / "14.png").resize((400, 60)).save(train / "green" / "wide.png")
    (photos / "test" / "green" / "000.png").write_bytes(b"no image")  # the rows of all others are not their places
    Image.open(train / "green" / "16.png").save(
        photos / "test" / "red" / "leak-again.jpg", quality=100, subsampling=0
    )
    config = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu", max_bad=1)
    featx.extract_features(photos, folder / "f.h5", config)
    report = featx.find_suspects(folder / "f.h5", folder / "out", featx.SuspectsConfig(near=0.99))
    with (folder / "out" / "suspects.csv").open(newline="") as file:
        return folder, report, list(csv.DictReader(file))


def of_kind(rows, kind):
    return [row["path"] for row in rows if row["issue"] == kind]


def test_every_fault_is_found(found):
    _, report, rows = found
    assert "train/green/wrong.png" in of_kind(rows, "label")
    line = next(row for row in rows if row["path"] == "train/green/wrong.png")
    assert (line["label"], line["suggestion"], line["split"]) == ("green", "red", "train")
    assert of_kind(rows, "copy") == ["train/red/copy.png"]
    across = of_kind(rows, "copy-across-splits")
    assert across == ["train/red/09.png"]  # the later of the two in the file
    leaked = next(row for row in rows if row["issue"] == "near-duplicate-across-splits")
    assert leaked["path"] == "train/green/16.png"
    assert "with another label" in leaked["detail"]
    stored = json.loads((found[0] / "out" / "suspects.json").read_text())["suspects"]
    paths = featx.open_features(found[0] / "f.h5").paths
    beside = {one["path"]: [paths[row] for row in one["beside"]] for one in stored if "copy" in one["issue"]}
    assert beside == {"train/red/copy.png": ["train/red/07.png"], "train/red/09.png": ["test/red/leak.png"]}
    for one in stored:
        if one["issue"] == "label":
            assert all(paths[row].split("/")[1] != one["label"] for row in one["beside"])
    assert of_kind(rows, "near-duplicate")[0] in ("train/green/again.jpg", "train/green/11.png")
    assert of_kind(rows, "dark") == ["train/red/dark.png"]
    assert "train/red/blurred.png" in of_kind(rows, "blurred")
    assert of_kind(rows, "odd-size") == ["train/green/wide.png"]
    counts = {kind: int(count) for kind, count, _ in report.rows}
    assert counts == {kind: len(of_kind(rows, kind)) for kind in counts}
    scores = [float(row["score"]) for row in rows if row["issue"] == "label"]
    assert scores == sorted(scores)


def test_the_json_and_the_page_hold_the_same(found):
    folder, _, rows = found
    stored = json.loads((folder / "out" / "suspects.json").read_text())
    assert [one["path"] for one in stored["suspects"]] == [row["path"] for row in rows]
    assert stored["thresholds"]["near-duplicate"] == 0.99
    assert set(stored["thresholds"]["label"]) == {"green", "red"}
    page = (folder / "out" / "suspects.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [line[3] for line in data["lines"]] == [row["path"] for row in rows]
    shown = {item["row"] for section in data["sections"] for item in section["items"]}
    assert {int(row["row"]) for row in rows} == shown
    assert all(str(row) in data["pictures"] for row in shown)


def test_the_same_again_is_there_and_other_settings_are_refused(found):
    folder, report, _ = found
    again = featx.find_suspects(folder / "f.h5", folder / "out", featx.SuspectsConfig(near=0.99))
    assert again.rows == report.rows
    with pytest.raises(PlanMismatch, match=r"--near 0\.99, now 0\.9"):
        featx.find_suspects(folder / "f.h5", folder / "out", featx.SuspectsConfig(near=0.9))


def test_clean_leaves_out_what_is_ticked_and_extracts_to_the_same_rows(found, tmp_path):
    folder, _, rows = found
    gone = {rows[0]["path"], of_kind(rows, "copy")[0]}
    table = tmp_path / "ticked.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        for number, row in enumerate(rows):
            ticked = number == 0 or row["issue"] == "copy"
            writer.writerow({**row, "remove": "x" if ticked else ""})
    report = featx.clean_list(folder / "f.h5", table, tmp_path / "list.csv")
    before = featx.open_features(folder / "f.h5")
    assert (report.images, report.removed) == (len(before) - len(gone), len(gone))
    again = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu", max_bad=1)
    featx.extract_features(tmp_path / "list.csv", tmp_path / "clean.h5", again)
    after = featx.open_features(tmp_path / "clean.h5")
    kept = [row for row, path in enumerate(before.paths) if path not in gone]
    np.testing.assert_array_equal(after["fc7"], before["fc7"][kept])
    assert [after.classes[k] for k in after.labels] == [before.classes[k] for k in before.labels[kept]]
    assert [after.splits[k] for k in after.split_of] == [before.splits[k] for k in before.split_of[kept]]
    assert featx.clean_list(folder / "f.h5", table, tmp_path / "list.csv").images == report.images  # as it is
    with pytest.raises(UsageError, match="is there and is another list"):
        featx.clean_list(folder / "f.h5", folder / "out" / "suspects.csv", tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("a,b\n", FileFormatError, "needs the columns remove, row and path"),
        ("remove,row,path\nmaybe,0,x\n", UsageError, "line 2: remove is 'maybe'"),
        ("remove,row,path\nx,0,other.png\n", UsageError, "the table is of other features"),
        ("remove,row,path\nx,9999,x\n", UsageError, "the table is of other features"),
        ("remove,row,path\n,0,other.png\n", UsageError, "the table is of other features"),
    ],
)
def test_a_table_that_is_none_is_one_line(found, tmp_path, text, error, says):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error) as caught:
        featx.clean_list(found[0] / "f.h5", tmp_path / "t.csv", tmp_path / "list.csv")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "list.csv").exists()


def test_images_that_are_gone_and_a_set_without_classes(tmp_path):
    for number in range(6):
        write_photo(tmp_path / "photos" / f"{number}.jpg", number)
    featx.extract_features(tmp_path / "photos", tmp_path / "f.h5", CONFIG)
    (tmp_path / "photos" / "3.jpg").unlink()
    report = featx.find_suspects(tmp_path / "f.h5", tmp_path / "out")
    assert {kind: int(count) for kind, count, _ in report.rows}["label"] == 0
    assert (tmp_path / "out" / "suspects.html").exists()


@pytest.mark.parametrize(
    ("tick", "kept"), [("x", 5), ("1", 5), ("Yes", 5), ("true", 5), ("remove", 5), ("", 6), ("no", 6)]
)
def test_ticks_are_what_people_write(tmp_path, tick, kept):
    for number in range(6):
        write_photo(tmp_path / "photos" / f"{number}.png", number, (64, 64))
    featx.extract_features(tmp_path / "photos", tmp_path / "f.h5", CONFIG)
    (tmp_path / "t.csv").write_text(f"remove,row,path\n{tick},2,2.png\n")
    assert featx.clean_list(tmp_path / "f.h5", tmp_path / "t.csv", tmp_path / "list.csv").images == kept
    assert ("2.png" in (tmp_path / "list.csv").read_text()) is (kept == 6)


def test_outliers_lie_beyond_the_fence():
    similar = np.array(
        [[0.9, 0.9], [0.91, 0.9], [0.89, 0.9], [0.9, 0.92], [0.1, 0.0], [0.9, 0.91], [0.4, 0.2]], np.float32
    )
    near = Neighbourhood(np.zeros((0, 2), np.intp), np.zeros(0, np.float32), np.tile([0, 1], (7, 1)), similar)
    rows = np.array([10, 11, 12, 13, 14, 15, 16])
    distance = 1 - similar.mean(1, dtype=np.float64)
    low, high = np.percentile(distance, [25, 75])
    found, limit = outlier_suspects(near, rows)
    assert limit == pytest.approx(high + 1.5 * (high - low))
    assert [one.row for one in found] == [14] if distance[6] <= limit else [14, 16]
    assert -found[0].score == pytest.approx(distance[4])
    assert found[0].beside == [10, 11]


def test_photographs_are_measured_as_they_are():
    def jpeg(pixels):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=95)
        return out.getvalue()

    generator = np.random.default_rng(0)
    bright = generator.integers(0, 256, (700, 1000, 3), np.uint8)
    dark, darker = bright // 6, bright // 12
    spots = dark.copy()
    spots[:200] = 250  # a fifth is bright: not dark
    small = bright[:100, :100]
    files = [jpeg(one) for one in (bright, dark, darker, spots, small, bright[:600], bright[:650])]
    found = look_at(range(len(files)), files.__getitem__)
    assert found.sizes[0].tolist() == [1000, 700]  # not what the decoder made of it to be quick
    listed = faults(found)
    assert [place for place, *_ in listed["dark"]] == [2, 1]  # the darkest first
    assert [(place, words) for place, _, words in listed["odd-size"]] == [(4, "100 x 100 pixels")]


def test_probabilities_are_of_heads_that_have_not_seen_the_image_or_its_copies(tmp_path):
    from scipy.special import softmax

    from featx.artifacts.head_rows import kept_together
    from featx.heads.selection.search import fit_heads

    values, labels = clusters(per_class=20, spread=3.0, seed=2)
    hashes = np.random.default_rng(0).integers(1, 255, (60, 32), np.uint8)
    hashes[45] = hashes[3]
    values[45] = values[3]  # a copy in another class
    path = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"), sha256=hashes)
    config = featx.SuspectsConfig(c=0.3, folds=3, seed=5, no_photos=True, neighbors=2)
    featx.find_suspects(path, tmp_path / "out", config)
    features, rows = featx.open_features(path), np.arange(60)
    together = kept_together(features, rows)
    assert together[45] == 3
    fitted = fit_heads(
        "softmax", values, rows, labels.astype(np.int32), ["a", "b", "c"], c=0.3, folds=3, seed=5, normalize="l2",
        device=torch.device("cpu"), memory_bytes=1 << 30, keep_scores=True, copies=together,
    )  # fmt: skip
    expected = doubts(softmax(fitted.held_out_scores.astype(float), axis=1), labels)
    stored = json.loads((tmp_path / "out" / "suspects.json").read_text())
    assert list(stored["thresholds"]["label"].values()) == pytest.approx(expected.thresholds, abs=1e-6)
    doubted = {one["row"]: one["score"] for one in stored["suspects"] if one["issue"] == "label"}
    assert set(doubted) == set(np.flatnonzero(expected.doubted).tolist())
    assert doubted
    for row, score in doubted.items():
        assert abs(score) == pytest.approx(expected.confidence[row], abs=1e-6)
    assert all(len(one["beside"]) <= 2 for one in stored["suspects"] if one["issue"] == "label")
