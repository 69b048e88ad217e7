"""The GPU's pipeline, its logic: run on a CPU, whose streams do everything at once. See test_gpu.py for the device."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from conftest import write_photo
from PIL import Image
from safetensors.torch import save_file

from featx.commands.extract import extract_features
from featx.commands.verify import verify_file
from featx.errors import FeatxError, OutOfMemory, UsageError, VerificationFailed
from featx.extraction.engine import BLOCKS_ON_GPU, Engine
from featx.extraction.gpu.cuda import GpuPipeline
from featx.extraction.gpu.device_cache import DeviceCache
from featx.extraction.pipeline import stream_features
from featx.extraction.recipe import Recipe
from featx.heads.device_head import HeadOnDevice
from featx.heads.linear_head import LinearHead
from featx.images.reader import BlockReader
from featx.images.sources.scan import scan
from featx.networks.build import construct
from featx.options.extraction import ExtractConfig, VerifyConfig
from featx.status import Decoder, Status
from featx.store.open import open_features

CPU = torch.device("cpu")
SIDE = 6


def summary(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Something that tells images apart: (rows, S, S, 3) uint8 -> two layers."""
    values = images.float()
    return {"maps": values.permute(0, 3, 1, 2).contiguous(), "sums": values.sum((1, 2))}


def block_of(seed: int, count: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return pixels.transpose(0, 3, 1, 2)


CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), CUBLAS], ids=["torch", "cublas"])
@pytest.mark.parametrize(("fits", "rows"), [(10, 10), (9, 5), (4, 3), (1, 1)])
def test_what_does_not_fit_into_memory_at_once_goes_through_in_parts(fits, rows, error):
    def compute(images: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(images) > fits:
            raise error
        return summary(images)

    with torch.inference_mode():
        pipeline = GpuPipeline(compute, batch_size=10, side=SIDE, device=CPU)
        assert (pipeline.rows, pipeline.is_graph) == (rows, False)
        for seed in range(3):
            pixels = block_of(seed, 10)
            with pipeline.features(lambda pixels=pixels: (pixels, None)) as found:
                np.testing.assert_array_equal(found["maps"], pixels.astype(np.float32))
                np.testing.assert_array_equal(found["sums"], pixels.astype(np.float32).sum((2, 3)))


@pytest.mark.parametrize("count", [1, 3])
def test_what_leaves_too_little_for_a_block_goes_through_in_smaller_parts(monkeypatch, count):
    """The network's memory is taken first; then a slot must fit as well, whatever their number."""
    seen = []

    def compute(images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(images))
        return summary(images)

    own, taken = torch.empty, []

    def empty(*shape, **options):
        if shape == (10, SIDE, SIDE, 3) and "device" in options:  # the pixels of a slot
            if seen[-1] > 3 or len(taken) == count:
                raise torch.OutOfMemoryError("no room")
            taken.append(shape)
        return own(*shape, **options)

    with torch.inference_mode():
        with monkeypatch.context() as patched:
            patched.setattr(torch, "empty", empty)
            pipeline = GpuPipeline(compute, batch_size=10, side=SIDE, device=CPU)
        assert (pipeline.rows, pipeline._slots.qsize()) == (3, count)
        pixels = block_of(0, 10)
        with pipeline.features(lambda: (pixels, None)) as found:
            np.testing.assert_array_equal(found["maps"], pixels.astype(np.float32))


def test_a_pipelines_stream_is_the_next_ones():
    one, two = (GpuPipeline(summary, batch_size=2, side=SIDE, device=CPU) for _ in range(2))
    assert one._stream is not two._stream
    stream = one._stream
    one.close()
    one.close()
    three, four = (GpuPipeline(summary, batch_size=2, side=SIDE, device=CPU) for _ in range(2))
    assert three._stream is stream
    assert four._stream is not stream


def test_a_pipeline_that_cannot_be_made_gives_its_stream_back():
    def compute(images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("no room")

    pipeline = GpuPipeline(summary, batch_size=2, side=SIDE, device=CPU)
    stream = pipeline._stream
    pipeline.close()
    with pytest.raises(OutOfMemory):
        GpuPipeline(compute, batch_size=2, side=SIDE, device=CPU)
    assert GpuPipeline(summary, batch_size=2, side=SIDE, device=CPU)._stream is stream


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory():
    def compute(images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        GpuPipeline(compute, batch_size=4, side=SIDE, device=CPU)


def test_too_little_memory_for_one_image_is_said_in_one_line():
    def compute(images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nand a page of statistics")

    with pytest.raises(OutOfMemory, match=r"not even one image fits .*2.00 GiB. Ask for") as error:
        GpuPipeline(compute, batch_size=4, side=SIDE, device=CPU)
    assert "statistics" not in str(error.value)


def test_too_little_memory_for_one_block_is_said_in_one_line(monkeypatch):
    own = torch.empty

    def empty(*shape, **options):
        if shape[0] == 4:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nand a page of statistics")
        return own(*shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(OutOfMemory, match=r"not even one block's features fit .*2.00 GiB. Ask for"):
        GpuPipeline(summary, batch_size=4, side=SIDE, device=CPU)


def test_pixels_made_on_the_device_take_their_places():
    pixels, own = block_of(0, 4), block_of(1, 2)
    with torch.inference_mode():
        pipeline = GpuPipeline(summary, batch_size=4, side=SIDE, device=CPU)
        prepared = pixels, (torch.tensor([3, 1]), torch.from_numpy(own))
        with pipeline.features(lambda: prepared) as found:
            np.testing.assert_array_equal(found["maps"][[0, 2, 3, 1]], np.concatenate([pixels[[0, 2]], own]))


def test_blocks_of_many_threads_do_not_mix():
    with torch.inference_mode():
        pipeline = GpuPipeline(summary, batch_size=4, side=SIDE, device=CPU, slots=2)
    wrong = []

    def work(thread: int) -> None:
        for turn in range(50):
            pixels = block_of(100 * thread + turn, 4)
            with torch.inference_mode(), pipeline.features(lambda pixels=pixels: (pixels, None)) as found:
                if not np.array_equal(found["maps"], pixels):
                    wrong.append((thread, turn))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def recipe_for(decode: str, **options) -> Recipe:
    recipe = Recipe.plan(
        backbone="squeezenet1_1", layers="features.3,classifier.1", pool="avg", device="cpu",
        batch_size=4, **{"weights": "random:0", **options},
    )  # fmt: skip
    return replace(recipe, decode=decode)  # the command line refuses it on a CPU


def test_a_network_that_is_closed_is_given_free():
    recipe = recipe_for("gpu")
    extractor = Engine(recipe)
    assert extractor.gpu is not None
    kept = [weakref.ref(extractor.gpu), *(weakref.ref(p) for p in extractor._network.parameters())]
    extractor.close()
    assert [reference() for reference in kept] == [None] * len(kept)
    assert len(kept) > 20
    extractor.close()  # twice does no harm


@pytest.fixture
def mixed(tmp_path):
    """Seventeen files: JPEGs, and among them what the device must not or cannot decode."""
    folder = tmp_path / "mixed"
    for index in range(17):
        write_photo(folder / f"{index:02d}.jpg", index, (90 + 5 * index, 80))
    for index, options in ((2, {"format": "PNG"}), (5, {"format": "JPEG", "progressive": True})):
        path = folder / f"{index:02d}.jpg"
        with Image.open(path) as image:
            image.load()
            image.save(path, **options)
    whole = (folder / "07.jpg").read_bytes()
    (folder / "07.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "08.jpg").write_bytes(b"not an image")
    (folder / "09.jpg").write_bytes(b"")
    return folder


def streamed(folder, recipe: Recipe, workers: int = 2):
    """Features of each layer, status and decoder of every row."""
    manifest, extractor = scan(folder), Engine(recipe)
    features = {s.name: np.full((len(manifest), *s.shape), 7, np.float32) for s in recipe.layer_specs()}
    status, decoder = np.zeros(len(manifest), np.uint8), np.full(len(manifest), 9, np.uint8)

    def keep(block, found) -> None:
        rows = slice(block.first, block.first + len(block.status))
        for name, values in found.items():
            features[name][rows] = values
        status[rows], decoder[rows] = block.status, block.decoder

    blocks = range(0, len(manifest), recipe.batch_size)
    stream_features(manifest, extractor, keep, blocks=blocks, workers=workers, stop=threading.Event())
    return features, status, decoder


def test_whatever_decodes_every_row_is_its_image_or_its_failure_and_says_who_made_it(mixed):
    expected, status, decoder = streamed(mixed, recipe_for("cpu"))
    assert set(decoder) == {Decoder.PILLOW}
    assert [int(s) for s in status[[7, 8, 9]]] == [Status.DAMAGED, Status.NOT_AN_IMAGE, Status.EMPTY]
    for decode in ("gpu", "auto"):
        found, same_status, by = streamed(mixed, recipe_for(decode))
        np.testing.assert_array_equal(same_status, status)
        assert not by[[2, 5, 7, 8, 9]].any()
        good, pillow = status == Status.DONE, by == Decoder.PILLOW
        assert decode == "auto" or by[good].sum() == 12
        for name, values in found.items():
            assert np.isnan(values[~good]).all()
            most = np.abs(expected[name][good]).max()
            assert np.abs(values - expected[name])[good & pillow].max() <= 1e-5 * most
            assert 0 < np.abs(values - expected[name])[good & ~pillow].max() <= 0.02 * most


def test_layers_left_on_the_device_are_those_of_the_file(mixed, tmp_path):
    recipe = recipe_for("gpu")
    extract_features(mixed, tmp_path / "f.h5", ExtractConfig(
        backbone="squeezenet1_1", layers="features.3,classifier.1", weights="random:0", pool="avg", max_bad=0.5,
        device="cpu", batch_size=4))  # fmt: skip
    manifest, extractor, resident = scan(mixed), Engine(recipe), DeviceCache()
    features = open_features(tmp_path / "f.h5")
    assert isinstance(resident.values(features, "classifier.1"), np.ndarray), "nothing is left there yet"
    resident.make_room(recipe.layer_specs(), len(manifest), CPU)
    extractor.cache, computed = resident, {}

    def keep(block, found) -> None:
        computed[block.first] = {name: values.copy() for name, values in found.items()}

    # One block is another process's; the last one has a single image.
    stream_features(manifest, extractor, keep, blocks=[12, 0, 8, 16], workers=3, stop=threading.Event())
    resident.complete(features)
    for name in features:
        there, file = resident.values(features, name), features[name].reshape(17, -1)
        assert isinstance(there, torch.Tensor)
        np.testing.assert_array_equal(there[4:8], file[4:8])
        for first, found in computed.items():
            np.testing.assert_array_equal(there[first : first + 4], found[name].reshape(len(found[name]), -1))
        np.testing.assert_array_equal(np.isnan(there.numpy()).any(1), features.status != Status.DONE)


def test_layers_that_do_not_fit_on_the_device_are_read_from_the_file(mixed, tmp_path):
    options = {"backbone": "squeezenet1_1", "weights": "random:0", "device": "cpu", "max_bad": 0.5}
    extract_features(mixed, tmp_path / "f.h5", ExtractConfig(layers="classifier.1", pool="avg", **options))
    resident, features = DeviceCache(), open_features(tmp_path / "f.h5")
    resident.make_room(list(features.layers.values()), 1 << 26, CPU)
    assert isinstance(resident.values(features, "classifier.1"), np.ndarray)


@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_a_head_on_the_device_gives_the_scores_of_a_head(mixed, normalize):
    generator = np.random.default_rng(0)
    head = LinearHead(
        "svm", generator.normal(size=(3, 1000)), generator.normal(size=3), ["a", "b", "c"], normalize, "classifier.1",
        recipe={},
    )  # fmt: skip
    reader = BlockReader(scan(mixed), recipe_for("cpu").preprocess, 4)
    for first in (0, 4):
        block = reader.block(first)
        features = Engine(recipe_for("gpu"))(block.pixels)["classifier.1"]
        for decode in ("cpu", "gpu"):
            found = Engine(recipe_for(decode), heads=[head])(block.pixels)
            assert list(found) == ["scores"]
            tolerance = 1e-12 if decode == "gpu" else 1e-5  # packed weights round otherwise
            np.testing.assert_allclose(found["scores"], head.scores(features), rtol=tolerance, atol=tolerance)
    with pytest.raises(FeatxError, match="rows of 1000 values"):
        HeadOnDevice(head, CPU)(torch.ones(2, 999))


def test_scores_of_many_rows_are_computed_in_blocks(monkeypatch):
    monkeypatch.setattr("featx.heads.device_head.BLOCK_BYTES", 8 * 20 * 3)
    generator = np.random.default_rng(0)
    head = LinearHead(
        "svm", generator.normal(size=(3, 20)), generator.normal(size=3), ["a", "b", "c"], "l2", "fc7", {}
    )
    values, rows = generator.normal(size=(40, 20)).astype(np.float32), generator.permutation(40)[:11]
    found = HeadOnDevice(head, CPU).of_rows(torch.from_numpy(values), rows)
    np.testing.assert_allclose(found, head.scores(values[rows]), rtol=1e-12, atol=1e-12)


def test_a_file_the_device_chokes_on_costs_nobody_else_their_features(mixed):
    whole = (mixed / "12.jpg").read_bytes()
    start = whole.index(b"\xff\xda")
    (mixed / "12.jpg").write_bytes(whole[:start] + b"\xff\xd9")  # a header, an end, and no picture in between
    expected, status, _ = streamed(mixed, recipe_for("cpu"))
    found, same_status, by = streamed(mixed, recipe_for("gpu"))
    np.testing.assert_array_equal(same_status, status)
    assert not by[12:16].any(), "the whole block falls to Pillow"
    assert by[0]
    good = np.isin(np.arange(17), [13, 14, 15])
    most = np.abs(expected["classifier.1"][good]).max()
    assert np.abs(found["classifier.1"] - expected["classifier.1"])[good].max() <= 1e-5 * most


def test_the_decoder_is_given_back_for_every_block_it_was_claimed_for(mixed):
    recipe = recipe_for("auto")
    extractor = Engine(recipe)
    reader = BlockReader(scan(mixed), recipe.preprocess, 4)
    for _ in range(3):
        claimed = [extractor.claim_decoder() for _ in range(BLOCKS_ON_GPU + 2)]
        assert claimed == [True] * BLOCKS_ON_GPU + [False] * 2
        for first in (0, 8) * (BLOCKS_ON_GPU // 2):  # one block with files for it, one without
            with extractor.features(reader.block(first, keep_encoded=True), reader):
                pass


def test_values_that_are_no_numbers_or_too_large_for_float16_are_refused(tmp_path):
    state = construct("squeezenet1_1", seed=0).state_dict()
    state["classifier.1.bias"] += 1e5
    save_file(state, tmp_path / "large.safetensors")
    state["classifier.1.weight"] = (state["classifier.1.weight"] / state["classifier.1.weight"].abs().max()) * 3e38
    save_file(state, tmp_path / "infinite.safetensors")
    pixels = np.zeros((4, 224, 224, 3), np.uint8).transpose(0, 3, 1, 2)
    large, infinite = str(tmp_path / "large.safetensors"), str(tmp_path / "infinite.safetensors")
    assert Engine(recipe_for("gpu", weights=large))(pixels)["classifier.1"].min() > 9e4
    with pytest.raises(FeatxError, match=r"layer classifier.1 reaches 10\d{4}.*float16"):
        Engine(recipe_for("gpu", weights=large, dtype="float16"))(pixels)
    with pytest.raises(FeatxError, match=r"layer classifier.1 came out NaN"):
        Engine(recipe_for("gpu", weights=infinite))(pixels)


def test_decoding_on_a_gpu_that_is_not_there_is_an_error(photos, tmp_path):
    with pytest.raises(UsageError, match="--decode auto needs a GPU"):
        extract_features(photos, tmp_path / "f.h5", ExtractConfig(device="cpu", decode="auto", weights="random:0"))
    assert not list(tmp_path.glob("f.h5*"))


def test_verify_holds_rows_of_the_gpus_decoder_to_a_bound_of_their_own(photos, tmp_path):
    path = tmp_path / "f.h5"
    options = {"backbone": "squeezenet1_1", "weights": "random:0", "device": "cpu", "pool": "avg", "batch_size": 4}
    extract_features(photos, path, ExtractConfig(layers="features.3,classifier.1", **options))
    found, _, _ = streamed(photos, recipe_for("gpu"))
    with h5py.File(path, "r+") as file:
        for name, values in found.items():
            file[f"features/{name}"][4:8] = values[4:8]
        file["images/decoder"][4:8] = Decoder.NVJPEG
        del file["checksums"]  # what is held here is the bound, of a file as schema 1 had it
        file.attrs["schema"] = 1
    report = verify_file(path, VerifyConfig(rows=11))
    assert [(check.layer, check.decoder) for check in report.layers] == [
        ("features.3", "PILLOW"), ("features.3", "NVJPEG"), ("classifier.1", "PILLOW"), ("classifier.1", "NVJPEG"),
    ]  # fmt: skip
    assert "features.3, by nvJPEG" in "\n".join(report.lines())
    exact, device = report.layers[2:]
    assert exact.difference <= 1e-5 < device.difference <= 5e-2 < device.tolerance
    with h5py.File(path, "r+") as file:
        file["images/decoder"][4:8] = Decoder.PILLOW  # a lie
    with pytest.raises(VerificationFailed):
        verify_file(path, VerifyConfig(rows=11))
    with h5py.File(path, "r+") as file:
        file["images/decoder"][0] = 3
    with pytest.raises(FeatxError, match="/images/decoder holds 3"):
        open_features(path)
