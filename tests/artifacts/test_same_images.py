"""Other images under the same names are never taken for those that something was made from; copies are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from PIL import Image
from stopping import WITHOUT_TORCH, swap

from featx.artifacts.same_images import record_of, refuse_other_files
from featx.commands.extract import extract_features
from featx.commands.finetune import finetune_network
from featx.commands.fit import fit_svm
from featx.commands.merge import merge_shards
from featx.commands.predict import predict_images
from featx.errors import Interrupted, PlanMismatch, TooManyBadImages
from featx.extraction.job import ExtractionJob
from featx.images.contents import content_hashes, files_state, sum_of_states
from featx.images.manifest import Manifest
from featx.images.sources.scan import scan
from featx.options.extraction import ExtractConfig, PredictConfig
from featx.options.heads import FitConfig
from featx.options.training import FinetuneConfig
from featx.runtime.progress import Reporter
from featx.store.open import open_features
from featx.store.writer import FeatureWriter

CONFIG = ExtractConfig(backbone="alexnet-mini", layers="conv1", weights="random:0", device="cpu", batch_size=2)
TWO = ("a/03.jpg", "a/06.jpg")
OTHERS = r"was made from other images of the same names: 2 of 11 differ \(first: a/03\.jpg\)\. Choose another output"


@pytest.fixture
def copy(photos: Path, tmp_path: Path) -> Path:
    """The same names and images, as other files."""
    shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    return tmp_path / "copy"


def test_a_finished_file_knows_its_images(photos, copy, tmp_path):
    extract_features(photos, tmp_path / "f.h5", CONFIG)
    before = (tmp_path / "f.h5").read_bytes()
    assert extract_features(copy, tmp_path / "f.h5", CONFIG).computed == 0
    swap(*(copy / name for name in TWO))
    with pytest.raises(PlanMismatch, match=rf"f\.h5 {OTHERS}"):
        extract_features(copy, tmp_path / "f.h5", CONFIG)
    (copy / TWO[1]).unlink()
    (copy / TWO[1]).symlink_to("nowhere")  # what cannot be read contradicts nothing
    with pytest.raises(PlanMismatch, match="1 of 11 differ"):
        extract_features(copy, tmp_path / "f.h5", CONFIG)
    assert (tmp_path / "f.h5").read_bytes() == before


def test_a_look_and_a_few_images_are_enough_for_files_that_were_left_alone(tmp_path):
    """Torch is not loaded, and of sixty images sixteen are opened; all of them once their times are others."""
    photos = tmp_path / "photos"
    for index in range(60):
        write_photo(photos / "a" / f"{index:02d}.jpg", index, (70, 64))
    extract_features(photos, tmp_path / "f.h5", CONFIG)
    program = (
        "import os, atexit\n"
        "opened, seen = os.open, []\n"
        "def count(path, *rest, **more):\n"
        "    if os.fspath(path).endswith('.jpg'): seen.append(path)\n"
        "    return opened(path, *rest, **more)\n"
        "os.open = count\n"
        "atexit.register(lambda: print(len(seen), 'opened'))\n"
    )
    command = ["extract", str(photos), "-b", "alexnet-mini", "-l", "conv1", "-w", "random:0", "--device", "cpu",
               "--batch-size", "2", "-o", str(tmp_path / "f.h5")]  # fmt: skip
    for count in (16, 60):
        done = subprocess.run(
            [sys.executable, "-c", program + WITHOUT_TORCH, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"\n{count} opened\n")
        for path in photos.rglob("*.jpg"):
            os.utime(path)


@pytest.mark.parametrize("what", ["features", "table"])
def test_files_of_the_same_sizes_and_times_are_told_apart_by_a_few_of_their_images(tmp_path, what):
    for folder, seed in (("one", 0), ("other", 100)):
        for index in range(5):
            path = tmp_path / folder / f"{index}.bmp"
            write_photo(path.with_suffix(".jpg"), seed + index, (70, 64))
            with Image.open(path.with_suffix(".jpg")) as photo:
                photo.save(path)
            path.with_suffix(".jpg").unlink()
            os.utime(path, (0, 0))
    assert files_state(scan(tmp_path / "one")) == files_state(scan(tmp_path / "other"))
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    if what == "table":
        record = record_of(files_state(scan(one)), content_hashes(scan(one)))
        refuse_other_files("p.csv", record, scan(one))
        with pytest.raises(PlanMismatch, match=r"p\.csv was made from other images"):
            refuse_other_files("p.csv", record, scan(other))
    else:
        extract_features(one, out, CONFIG)
        with pytest.raises(PlanMismatch, match="5 of 5 differ"):
            extract_features(other, out, CONFIG)


def test_an_unfinished_file_without_a_finished_row_belongs_to_the_images_it_is_gone_on_with(photos, copy, tmp_path):
    """Begun and killed on one folder, finished on the other: then it is the other's."""
    swap(*(copy / name for name in TWO))
    begun = ExtractionJob(
        scan(photos), tmp_path / "f.h5", CONFIG, shard=None, queue=None, before=None, reporter=Reporter()
    )
    FeatureWriter.open(tmp_path / "f.h5", begun.plan).close()
    extract_features(copy, tmp_path / "f.h5", CONFIG)
    assert open_features(tmp_path / "f.h5").provenance["source"]["files"] == files_state(scan(copy))
    with pytest.raises(PlanMismatch, match="2 of 11 differ"):
        extract_features(photos, tmp_path / "f.h5", CONFIG)


def test_scores_that_were_gone_on_with_elsewhere_are_not_taken_for_the_first_folders(tmp_path):
    """Some of them from one folder, more from a copy of it in which later images are others, and back again."""
    photos, copy = tmp_path / "photos", tmp_path / "copy"
    for index in range(60):
        write_photo(photos / "ab"[index // 40] / f"{index:02d}.jpg", index, (70, 64))
    shutil.copytree(photos, copy)
    swap(copy / "a" / "20.jpg", copy / "a" / "21.jpg")
    extract_features(photos, tmp_path / "f.h5", CONFIG)
    head = tmp_path / "h.safetensors"
    fit_svm(tmp_path / "f.h5", head, FitConfig(c=1.0, test=0.0))
    asked = PredictConfig(device="cpu", batch_size=2, workers=1)
    for folder, blocks in ((photos, 2), (copy, 15)):
        with pytest.raises(Interrupted):
            predict_images(head, folder, tmp_path / "p.csv", asked, reporter=StopAfter(blocks))
    with pytest.raises(PlanMismatch, match=r"p\.csv\.scores\.partial was made from other images.*first: a/20\.jpg"):
        predict_images(head, photos, tmp_path / "p.csv", asked)
    predict_images(head, copy, tmp_path / "p.csv", asked)
    predict_images(head, copy, tmp_path / "undisturbed.csv", asked)
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()


class StopAfter(Reporter):
    """Sends this thread's process a signal after some blocks."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks

    def advance(self, steps: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_unfinished_file_knows_its_images_and_takes_a_copy_of_them(photos, copy, tmp_path):
    for folder in (photos, copy):
        (folder / "c" / "99.jpg").write_bytes(b"no image")
    extract_features(photos, tmp_path / "whole.h5", ExtractConfig(**{**vars(CONFIG), "max_bad": 0.5}))
    with pytest.raises(TooManyBadImages):
        extract_features(photos, tmp_path / "f.h5", CONFIG)
    swap(*(copy / name for name in TWO))
    with pytest.raises(PlanMismatch, match=rf"f\.h5\.partial {OTHERS}"):
        extract_features(copy, tmp_path / "f.h5", CONFIG)
    swap(*(copy / name for name in TWO))
    write_photo(copy / "c" / "99.jpg", 99)
    again = ExtractConfig(**{**vars(CONFIG), "retry_failed": True})
    assert extract_features(copy, tmp_path / "f.h5", again).computed == 1
    # From now on the copy's files are the ones it knows at a look.
    assert open_features(tmp_path / "f.h5").provenance["source"]["files"] == files_state(scan(copy))
    extract_features(copy, tmp_path / "fresh.h5", CONFIG)
    kept, fresh = (open_features(tmp_path / name) for name in ("f.h5", "fresh.h5"))
    np.testing.assert_array_equal(kept["conv1"], fresh["conv1"])


def test_shards_and_what_they_merge_to_know_their_images(photos, copy, tmp_path):
    shards = [ExtractConfig(**{**vars(CONFIG), "shard": f"{index}/2"}) for index in (0, 1)]
    for shard in shards:
        extract_features(photos, tmp_path / "f.h5", shard)
    merge_shards([tmp_path / f"f.{index}-of-2.h5" for index in (0, 1)], tmp_path / "f.h5")
    assert open_features(tmp_path / "f.h5").provenance["source"]["files"] == files_state(scan(photos))
    swap(*(copy / name for name in TWO))
    with pytest.raises(PlanMismatch, match=r"0-of-2\.h5 was made from other images"):
        extract_features(copy, tmp_path / "f.h5", shards[0])
    assert extract_features(copy, tmp_path / "f.h5", shards[1]).computed == 0
    with pytest.raises(PlanMismatch, match=OTHERS):
        extract_features(copy, tmp_path / "f.h5", CONFIG)


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for photo in sorted(folder.rglob("*.jpg")):
            archive.write(photo, photo.relative_to(folder))
    return path


def test_a_zip_too(photos, copy, tmp_path):
    for folder in (photos, copy):  # of one size: the checksums alone tell them apart
        size = max((folder / name).stat().st_size for name in TWO)
        for name in TWO:
            (folder / name).write_bytes((folder / name).read_bytes().ljust(size, b"\0"))
    extract_features(zip_of(photos, tmp_path / "z.zip"), tmp_path / "f.h5", CONFIG)
    assert extract_features(zip_of(copy, tmp_path / "z.zip"), tmp_path / "f.h5", CONFIG).computed == 0
    swap(*(copy / name for name in TWO))
    with pytest.raises(PlanMismatch, match=OTHERS):
        extract_features(zip_of(copy, tmp_path / "z.zip"), tmp_path / "f.h5", CONFIG)


def test_a_large_zip_is_read_through_one_handle_per_thread(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for index in range(300):
            archive.writestr(f"{index:03d}.jpg", bytes([index % 251] * (index + 1)))
    opened: list[Path] = []
    plain = zipfile.ZipFile.__init__

    def counted(self, *given, **more):
        opened.append(self)
        plain(self, *given, **more)

    whole = scan(tmp_path / "z.zip")
    monkeypatch.setattr(zipfile.ZipFile, "__init__", counted)
    found = content_hashes(whole)
    assert len(opened) <= (os.cpu_count() or 1)
    expected = [hashlib.sha256(bytes([index % 251] * (index + 1))).digest() for index in range(300)]
    assert [row.tobytes() for row in found] == expected


def test_predictions_of_a_head_too(photos, copy, tmp_path):
    extract_features(photos, tmp_path / "f.h5", CONFIG)
    fit_svm(tmp_path / "f.h5", tmp_path / "h.safetensors", FitConfig(c=1.0, test=0.0))
    asked = PredictConfig(device="cpu")
    predict_images(tmp_path / "h.safetensors", photos, tmp_path / "p.csv", asked)
    predict_images(tmp_path / "h.safetensors", copy, tmp_path / "p.csv", asked)
    swap(*(copy / name for name in TWO))
    with pytest.raises(PlanMismatch, match=r"p\.csv was made from other images of the same names"):
        predict_images(tmp_path / "h.safetensors", copy, tmp_path / "p.csv", asked)
    (copy / TWO[0]).unlink()
    (copy / TWO[0]).symlink_to("nowhere")
    with pytest.raises(PlanMismatch, match=r"cannot be seen: 1 of them cannot be read \(first: a/03\.jpg\)"):
        predict_images(tmp_path / "h.safetensors", copy, tmp_path / "p.csv", asked)


def test_a_run_too_finished_or_not(photos, copy, tmp_path):
    asked = FinetuneConfig(backbone="alexnet-mini", weights="random:0", lr="head", epochs=1, val=0.0, device="cpu")
    finetune_network(photos, tmp_path / "run", asked)
    assert finetune_network(copy, tmp_path / "run", asked).epochs == 1
    swap(*(copy / name for name in TWO))
    for finished in (True, False):
        if not finished:
            (tmp_path / "run" / "report.json").unlink()
        with pytest.raises(PlanMismatch, match="run was made from other images of the same names"):
            finetune_network(copy, tmp_path / "run", asked)
    finetune_network(photos, tmp_path / "run", asked)
    path = tmp_path / "run" / "config.json"
    described = json.loads(path.read_text())
    assert described["plan"].pop("files") == record_of(files_state(scan(photos)), content_hashes(scan(photos)))
    path.write_text(json.dumps(described))  # a run of before there were records
    assert finetune_network(photos, tmp_path / "run", asked).epochs == 1


def test_states_of_parts_add_up_and_see_every_change(photos):
    whole = scan(photos)
    state = files_state(whole)
    parts: list[Manifest] = [whole.part(range(0, 4)), whole.part(range(4, len(whole)))]
    assert sum_of_states(map(files_state, parts)) == state
    assert sum_of_states([state, None]) is None
    path = photos / TWO[0]
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert files_state(whole) != state
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files_state(whole) == state
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files_state(whole) != state
    path.unlink()
    assert files_state(whole) != state
    assert not content_hashes(whole)[whole.paths.index(os.fsencode(TWO[0]))].any()
