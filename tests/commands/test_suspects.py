"""`featx suspects` and `featx clean`: cleanlab as oracle, faults that were put in, the page in a browser."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from conftest import write_photo
from PIL import Image, ImageFilter

import featx
from featx.analysis.suspects.labels import doubts
from featx.errors import FileFormatError, PlanMismatch, UsageError

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
    featx.extract_features(photos, folder / "f.h5", CONFIG)
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
    featx.extract_features(tmp_path / "list.csv", tmp_path / "clean.h5", CONFIG)
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
