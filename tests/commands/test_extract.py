"""A source becomes the features file it should, or the refusal it should."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_photo
from corpus import write_corpus
from PIL import Image

import featx as featx_package
from featx.artifacts import artifact
from featx.commands.extract import extract_features
from featx.errors import DeviceUnavailable, PlanMismatch, SourceError, TooManyBadImages, UsageError
from featx.images.contents import files_state
from featx.images.sources.scan import scan
from featx.networks.build import construct
from featx.options.extraction import ExtractConfig
from featx.runtime.device import choose_device
from featx.runtime.progress import Reporter
from featx.status import Status
from featx.store.open import open_features
from featx.store.schema import partial_path

NET = {"backbone": "squeezenet1_1", "weights": "random:0", "device": "cpu"}


def config(layers: str = "features.3,classifier.1", **options: object) -> ExtractConfig:
    return ExtractConfig(**{**NET, "layers": layers, **options})


def test_rows_are_plain_torchvision_on_each_image_in_the_order_of_the_paths(photos, tmp_path):
    extract_features(photos, tmp_path / "f.h5", config("features.12,classifier.1"))
    features = open_features(tmp_path / "f.h5")
    network = construct("squeezenet1_1", seed=0)
    from torchvision.models import SqueezeNet1_1_Weights

    transforms = SqueezeNet1_1_Weights.DEFAULT.transforms()
    paths = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    assert features.paths == paths
    assert [features.classes[label] for label in features.labels] == [p[0] for p in paths]
    for row, path in enumerate(paths):
        with torch.no_grad():
            maps = network.features(transforms(Image.open(photos / path))[None])
        expected = maps[0].numpy()
        assert np.abs(features["features.12"][row] - expected).max() <= 5e-6 * np.abs(expected).max(), path


def test_the_bytes_are_the_same_for_any_workers_and_any_other_layers_and_source_kind(photos, tmp_path):
    one, four, alone = (tmp_path / name for name in ("1.h5", "4.h5", "alone.h5"))
    extract_features(photos, one, config(batch_size=2, workers=1))
    extract_features(photos, four, config(batch_size=2, workers=4))
    extract_features(photos, alone, config("classifier.1", batch_size=2))
    assert one.read_bytes() == four.read_bytes()
    np.testing.assert_array_equal(open_features(one)["classifier.1"], open_features(alone)["classifier.1"])
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.jpg")):
            archive.write(path, path.relative_to(photos))
    extract_features(tmp_path / "photos.zip", tmp_path / "zip.h5", config(batch_size=2))
    zipped, plain = open_features(tmp_path / "zip.h5"), open_features(one)
    assert zipped.paths == plain.paths
    for layer in plain:
        np.testing.assert_array_equal(zipped[layer], plain[layer])


def test_rows_agree_across_batch_sizes_within_rounding(photos, tmp_path):
    for size in (1, 3, 32):
        extract_features(photos, tmp_path / f"{size}.h5", config(batch_size=size))
    reference = open_features(tmp_path / "1.h5")
    for size in (3, 32):
        other = open_features(tmp_path / f"{size}.h5")
        for layer in reference:
            assert np.abs(other[layer] - reference[layer]).max() <= 1e-5 * np.abs(reference[layer]).max()


def test_every_file_of_the_corpus_gets_its_own_row_whatever_its_neighbours(tmp_path):
    cases = write_corpus(tmp_path / "corpus")
    report = extract_features(
        tmp_path / "corpus", tmp_path / "f.h5", config("features.3", pool="avg", max_bad=1.0, batch_size=8)
    )
    features = open_features(tmp_path / "f.h5")
    assert features.raw_paths == [case.name for case in cases]
    assert [Status(s) for s in features.status] == [case.status for case in cases]
    bad = [row for row, case in enumerate(cases) if case.status != Status.DONE]
    assert np.isnan(features["features.3"][bad]).all()
    assert (report.failed, [f.row for f in report.failures]) == (len(bad), bad)
    good = [row for row in range(len(cases)) if row not in bad]
    for row in good[::4]:  # alone in a folder of its own, in another place of another block
        source = tmp_path / f"alone-{row}"
        source.mkdir()
        path = os.path.join(os.fsencode(tmp_path / "corpus"), cases[row].name)
        shutil.copy(path, os.path.join(os.fsencode(source), os.path.basename(cases[row].name)))
        extract_features(source, tmp_path / f"{row}.h5", config("features.3", pool="avg", batch_size=8))
        alone = open_features(tmp_path / f"{row}.h5")["features.3"][0]
        np.testing.assert_array_equal(features["features.3"][row], alone, err_msg=repr(cases[row].name))


def test_too_many_bad_images_stop_the_run_keep_what_is_done_and_can_be_allowed(photos, tmp_path):
    (photos / "a" / "broken.jpg").write_bytes(b"no")
    with pytest.raises(TooManyBadImages, match=r"1 of 12 images failed.*allows 0: a/broken\.jpg: no image") as caught:
        extract_features(photos, tmp_path / "f.h5", config())
    assert caught.value.exit_status == 3
    assert partial_path(tmp_path / "f.h5").exists()
    report = extract_features(photos, tmp_path / "f.h5", config(max_bad=0.1))
    assert (report.done, report.failed) == (11, 1)


def test_failed_images_are_tried_again_when_asked_and_only_then(photos, tmp_path):
    broken = photos / "a" / "broken.jpg"
    broken.write_bytes(b"no")
    out = tmp_path / "f.h5"
    extract_features(photos, out, config(max_bad=0.5))
    write_photo(broken, 99)
    assert extract_features(photos, out, config(max_bad=0.5)).failed == 1
    report = extract_features(photos, out, config(max_bad=0.5, retry_failed=True))
    assert (report.failed, report.computed) == (0, 1)
    extract_features(photos, tmp_path / "fresh.h5", config(max_bad=0.5))
    assert out.read_bytes() == (tmp_path / "fresh.h5").read_bytes()
    assert extract_features(photos, out, config(max_bad=0.5, retry_failed=True)).computed == 0


def test_the_same_call_again_does_nothing(photos, tmp_path):
    extract_features(photos, tmp_path / "f.h5", config())
    before = (tmp_path / "f.h5").read_bytes(), (tmp_path / "f.h5").stat().st_mtime_ns
    report = extract_features(photos, tmp_path / "f.h5", config())
    assert (report.computed, report.done) == (0, 11)
    assert before == ((tmp_path / "f.h5").read_bytes(), (tmp_path / "f.h5").stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": "features.3"}, r"layers\.classifier\.1"),
        ({"weights": "random:1"}, r"weights\.name random:0, now random:1"),
        ({"pool": "avg"}, "pooling none, now avg"),
        ({"dtype": "float16"}, "dtype float32, now float16"),
        ({"precision": "bf16"}, "precision fp32, now bf16"),
        ({"crop": 160}, r"preprocess\.crop 224, now 160"),
        ({"squash": True}, r"preprocess\.squash false, now true"),
        ({"exif": True}, "exif false, now true"),
        ({"batch_size": 3}, "batch_size 16, now 3"),
    ],
)
def test_another_plan_for_the_same_file_is_refused_with_the_difference(photos, tmp_path, change, named):
    extract_features(photos, tmp_path / "f.h5", config(batch_size=16))
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(PlanMismatch, match=named) as caught:
        extract_features(photos, tmp_path / "f.h5", config(**{"batch_size": 16, **change}))
    assert caught.value.exit_status == 4
    assert (tmp_path / "f.h5").read_bytes() == before


def test_new_images_in_the_source_are_named(photos, tmp_path):
    extract_features(photos, tmp_path / "f.h5", config())
    write_photo(photos / "c" / "new.jpg", 50)
    (photos / "a" / "00.jpg").unlink()
    with pytest.raises(
        PlanMismatch, match=r"other images: 1 new \(first: 'c/new\.jpg'\), 1 gone \(first: 'a/00\.jpg'\)"
    ):
        extract_features(photos, tmp_path / "f.h5", config())


def test_the_same_plan_in_other_words_is_the_same_plan(photos, tmp_path):
    extract_features(photos, tmp_path / "f.h5", config("features.3"))
    spec = open_features(tmp_path / "f.h5").provenance
    report = extract_features(photos, tmp_path / "f.h5", config("features.3", batch_size=spec["batch_size"]))
    assert report.computed == 0


@pytest.mark.parametrize("pool", ["none", "avg", "max", "flatten", "spp:1,2"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pooling_and_type_are_those_of_the_unpooled_features(photos, tmp_path, pool, dtype):
    from featx.extraction.reference import pool_plainly

    extract_features(photos, tmp_path / "none.h5", config("features.3,classifier.1"))
    extract_features(photos, tmp_path / "f.h5", config("features.3,classifier.1", pool=pool, dtype=dtype))
    plain, pooled = open_features(tmp_path / "none.h5"), open_features(tmp_path / "f.h5")
    for layer in plain:
        assert pooled[layer].dtype == dtype
        for row in (0, 10):
            expected = pool_plainly(torch.tensor(np.array(plain[layer][row])), pool).numpy()
            tolerance = 1e-6 if dtype == "float32" else 2**-11
            assert np.abs(pooled[layer][row] - expected).max() <= tolerance * np.abs(expected).max()


def test_a_pooling_that_does_not_suit_a_layer_is_refused_with_those_that_do(photos, tmp_path):
    with pytest.raises(
        UsageError,
        match=r"--pool avg does not suit vit_b_16 encoder\.ln: its shape \(197, 768\) is tokens behind a class token\. "
        r"Use --pool none, flatten, cls, mean or cls\+mean",
    ):
        extract_features(photos, tmp_path / "f.h5", config("encoder.ln", backbone="vit_b_16", pool="avg"))


def test_a_gpu_that_is_not_there_is_an_error_and_never_the_cpu(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="--device cuda: this machine has no usable CUDA device"):
        extract_features(photos, tmp_path / "f.h5", config(device="cuda"))
    assert choose_device("auto").type == "cpu"
    for spec in ("gpu", "tpu:0", "mps", "cuda:x"):
        with pytest.raises(UsageError, match="it can be cpu, cuda, cuda:N or auto"):
            choose_device(spec)
    with pytest.raises(UsageError, match="--precision tf32 needs a GPU"):
        extract_features(photos, tmp_path / "f.h5", config(precision="tf32"))


def test_what_cannot_fit_is_refused_before_anything_is_made(photos, tmp_path, monkeypatch, featx):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.total, 1000))
    found = featx("extract", photos, "-o", tmp_path / "f.h5", "-b", "alexnet", "-l", "all", "-w", "random:0")
    assert found.status == 74
    assert "f.h5 needs 25.6 MB; 1.0 kB are free" in found.err
    assert not list(tmp_path.glob("f.h5*"))


def test_a_full_disk_in_the_middle_keeps_what_is_done_and_resumes(photos, tmp_path, monkeypatch):
    real, calls = os.pwrite, []

    def fill_up(*args: object) -> int:
        calls.append(1)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr("featx.store.writer.os.pwrite", fill_up)
    with pytest.raises(featx_package.FeatxError, match="No space left on device; free some space") as caught:
        extract_features(photos, tmp_path / "f.h5", config(batch_size=2, workers=1))
    assert caught.value.exit_status == 74
    monkeypatch.setattr("featx.store.writer.os.pwrite", real)
    half = open_features(partial_path(tmp_path / "f.h5"), partial=True)
    assert 0 < half.count(1) < 11
    extract_features(photos, tmp_path / "f.h5", config(batch_size=2))
    extract_features(photos, tmp_path / "whole.h5", config(batch_size=2))
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_one_image_alone_and_images_without_labels_are_fine(tmp_path):
    write_photo(tmp_path / "s" / "only.jpg", 1)
    extract_features(tmp_path / "s", tmp_path / "f.h5", config())
    features = open_features(tmp_path / "f.h5")
    assert (len(features), features.classes, features.labels.tolist()) == (1, [], [-1])


def test_the_plan_says_rows_layers_shapes_bytes_and_free_disk(photos, tmp_path):
    class Listener(Reporter):
        lines: list[str] = []  # noqa: RUF012  # one listener

        def note(self, line: str) -> None:
            self.lines.append(line)

    extract_features(photos, tmp_path / "f.h5", config("features.3"), reporter=Listener())
    text = "\n".join(Listener.lines)
    for part in (
        "11 images, 3 classes",
        "features.3",
        "(128, 55, 55)",
        "17.0 MB",
        "are free there",
        "weights are random",
    ):
        assert part in text, part


def test_provenance_says_everything_needed_to_do_it_again(photos, tmp_path):
    extract_features(photos, tmp_path / "f.h5", config("features.3", pool="avg"))
    made = open_features(tmp_path / "f.h5").provenance
    assert made["command"] == (
        "featx extract SOURCE --backbone squeezenet1_1 --layers features.3 --weights random:0 --pool avg --device cpu"
    )
    state = files_state(scan(photos))
    assert made["source"] == {"path": str(photos), "kind": "folder", "files": state}
    assert len(made["weights"]["sha256"]) == 64
    assert set(made["versions"]) == {"featx", "torch", "torchvision", "decoder"}
    assert made["preprocess"]["resize"] == 256


def test_torchcodec_is_named_where_it_decoded_and_another_one_is_noted(photos, tmp_path, monkeypatch):
    chosen, out = config("features.3", pool="avg", decode="fast"), tmp_path / "f.h5"
    extract_features(photos, out, chosen)
    version = importlib.metadata.version("torchcodec")
    assert open_features(out).provenance["versions"]["torchcodec"] == version
    real = artifact.installed_versions()
    monkeypatch.setattr(artifact, "installed_versions", lambda: {**real, "torchcodec": "9.9"})
    lines: list[str] = []

    class Listener(Reporter):
        def note(self, text: str) -> None:
            lines.append(text)

    extract_features(photos, out, chosen, reporter=Listener())
    assert any(f"made with other versions (torchcodec {version}, now 9.9)" in line for line in lines)


def test_bf16_is_near_fp32_and_says_so(photos, tmp_path):
    extract_features(photos, tmp_path / "32.h5", config("classifier.1"))
    extract_features(photos, tmp_path / "16.h5", config("classifier.1", precision="bf16"))
    exact, rough = (open_features(tmp_path / f"{n}.h5")["classifier.1"] for n in (32, 16))
    difference = np.abs(exact - rough).max() / np.abs(exact).max()
    assert 1e-6 < difference < 3e-2


def test_threads_of_torch_are_given_back(photos, tmp_path):
    before = torch.get_num_threads()
    extract_features(photos, tmp_path / "f.h5", config())
    assert torch.get_num_threads() == before


def test_real_photos_fill_a_file_that_verifies(real_photos: Path, tmp_path, featx):
    out = tmp_path / "f.h5"
    done = featx("extract", real_photos, "-l", "conv3,fc7", "-w", "random:0", "-o", out, "--json")
    assert done.status == 0
    assert (done.json["images"], done.json["failed"]) == (267, 0)
    verified = featx("verify", out, "--rows", "12", "--json")
    assert verified.status == 0
    assert all(layer["difference"] < 1e-5 for layer in verified.json["layers"])


def test_a_retry_that_fails_leaves_the_finished_file_and_its_done_rows_as_they_were(photos, tmp_path):
    (photos / "a" / "broken.jpg").write_bytes(b"no")
    out = tmp_path / "f.h5"
    extract_features(photos, out, config(max_bad=0.5, batch_size=4))
    before = out.read_bytes()
    with pytest.raises(TooManyBadImages):
        extract_features(photos, out, config(retry_failed=True, batch_size=4))
    assert out.read_bytes() == before
    # Mended, while a neighbour in the same block has gone: the neighbour's row was done and stays.
    write_photo(photos / "a" / "broken.jpg", 77)
    (photos / "a" / "09.jpg").unlink()
    (photos / "a" / "09.jpg").symlink_to("nowhere")
    report = extract_features(photos, out, config(retry_failed=True, max_bad=0.5, batch_size=4))
    assert (report.done, report.failed) == (12, 0)
    assert os.listdir(tmp_path) == ["photos", "f.h5"] or sorted(os.listdir(tmp_path)) == ["f.h5", "photos"]


def test_a_link_as_output_means_the_file_it_points_to(photos, tmp_path):
    (tmp_path / "link.h5").symlink_to("target.h5")
    extract_features(photos, tmp_path / "link.h5", config())
    assert (tmp_path / "link.h5").is_symlink()
    assert open_features(tmp_path / "target.h5").complete


@pytest.mark.parametrize("name", ["x" * 300, "file/f.h5"])
def test_an_output_that_cannot_be_is_a_disk_error(photos, tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(featx_package.FeatxError) as caught:
        extract_features(photos, tmp_path / name, config())
    assert caught.value.exit_status == 74


def test_a_corrected_list_begins_anew_where_nothing_was_done_yet(photos, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("nowhere/1.jpg\nnowhere/2.jpg\n")
    with pytest.raises(SourceError, match=r"line 1: no file .*nowhere/1\.jpg.* Paths are relative to the folder of"):
        extract_features(listed, tmp_path / "f.h5", config())
    listed.write_text("photos/a/00.jpg\nphotos/b/01.jpg\n")
    assert extract_features(listed, tmp_path / "f.h5", config()).done == 2
