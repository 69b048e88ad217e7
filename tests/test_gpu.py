"""The GPU gives what the CPU gives. Run on a machine with one: pytest -m gpu"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_photo
from corpus import write_corpus
from safetensors.torch import load_file
from test_cuda import recipe_for, streamed

from featx.commands.extract import extract_features
from featx.commands.finetune import finetune_network
from featx.commands.fit import fit_softmax, fit_svm
from featx.commands.predict import predict_images
from featx.commands.probe import probe_layers
from featx.commands.verify import verify_file
from featx.extraction.engine import Engine
from featx.extraction.gpu.cuda import GpuPipeline
from featx.extraction.gpu.device_cache import DeviceCache
from featx.extraction.recipe import Recipe
from featx.heads.solver.solver import solve
from featx.images.block import Encoded
from featx.images.device_decode import DeviceDecoder
from featx.networks.weights import weights_of
from featx.options.extraction import ExtractConfig, PredictConfig, VerifyConfig
from featx.options.heads import FitConfig, ProbeConfig
from featx.options.training import FinetuneConfig
from featx.status import Decoder, Status
from featx.store.open import open_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*Plan failed.*"),  # cuDNN tried an algorithm that this shape does not have
]
LAYERS = "conv1,conv5,fc6,fc7,prob"


def extract(photos, out, device, **options):
    chosen = ExtractConfig(layers=LAYERS, weights="random:0", device=device, **options)
    extract_features(photos, out, chosen)
    return open_features(out)


@pytest.fixture
def many(tmp_path):
    """Sixty photos of three classes."""
    for index in range(60):
        write_photo(tmp_path / "many" / "abc"[index % 3] / f"{index:02d}.jpg", index, (90 + index, 80))
    return tmp_path / "many"


def test_strict_fp32_on_the_gpu_agrees_with_the_cpu(photos, tmp_path):
    gpu, cpu = (extract(photos, tmp_path / f"{device}.h5", device) for device in ("cuda", "cpu"))
    for layer in cpu:
        assert np.abs(gpu[layer] - cpu[layer]).max() <= 1e-5 * np.abs(cpu[layer]).max(), layer
    assert verify_file(tmp_path / "cuda.h5", VerifyConfig(rows=3)).passed


def test_two_runs_on_the_gpu_give_the_same_bytes(photos, tmp_path):
    extract(photos, tmp_path / "a.h5", "cuda", workers=1, batch_size=4)
    extract(photos, tmp_path / "b.h5", "cuda", workers=4, batch_size=4)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_reduced_precision_is_near_and_is_within_what_verify_allows(photos, tmp_path, precision):
    extract(photos, tmp_path / "f.h5", "cuda", precision=precision)
    assert verify_file(tmp_path / "f.h5", VerifyConfig(rows=3)).passed


def test_tf32_is_off_unless_asked_for(photos, tmp_path):
    before = torch.backends.cuda.matmul.fp32_precision
    strict = extract(photos, tmp_path / "a.h5", "cuda")
    loose = extract(photos, tmp_path / "b.h5", "cuda", precision="tf32")
    assert not np.array_equal(strict["fc7"], loose["fc7"])
    assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet18", "vgg-mini"])
def test_a_graph_gives_what_the_same_network_gives_kernel_by_kernel(name):
    recipe = Recipe.plan(backbone=name, layers="all", weights="random:0", pool="avg", device="cuda",
                         batch_size=8)  # fmt: skip
    extractor, side = Engine(recipe), recipe.preprocess.crop
    assert extractor.gpu is not None
    assert extractor.gpu.is_graph
    pixels = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), np.uint8)
    found = extractor(pixels.transpose(0, 3, 1, 2))
    with torch.inference_mode():
        expected = extractor._compute_on_gpu(torch.from_numpy(pixels).cuda())
    for layer, values in found.items():
        np.testing.assert_array_equal(values, expected[layer].cpu().numpy(), err_msg=layer)


def test_what_waits_for_the_device_half_way_runs_kernel_by_kernel():
    def compute(images: torch.Tensor) -> dict[str, torch.Tensor]:
        values = images.float()
        return {"scaled": values / values.max().item()}

    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    with torch.inference_mode():
        before = torch.cuda.current_stream()
        pipeline = GpuPipeline(compute, batch_size=4, side=6, device=torch.device("cuda"))
        assert not pipeline.is_graph
        assert torch.cuda.current_stream() == before
        for _ in range(3):
            with pipeline.features(lambda: (pixels.transpose(0, 3, 1, 2), None)) as found:
                np.testing.assert_allclose(found["scaled"], pixels.astype(np.float32) / pixels.max())


def test_too_little_memory_changes_nothing_but_the_rounding():
    recipe = Recipe.plan(backbone="alexnet", layers="conv1,fc7", weights="random:0", pool="avg",
                         device="cuda", batch_size=256)  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (256, 224, 224, 3), np.uint8).transpose(0, 3, 1, 2)
    extractor = Engine(recipe)
    whole = extractor(pixels)
    assert extractor.gpu is not None
    assert extractor.gpu.rows == 256
    extractor.close()
    used = torch.cuda.memory_reserved()
    room = (
        1_200_000_000  # conv1 of 256 images alone has 200 MB, and is there before and after its ReLU; weights 240 MB
    )
    torch.cuda.set_per_process_memory_fraction((used + room) / torch.cuda.mem_get_info()[1])
    try:
        short = Engine(recipe)
        parts = short(pixels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert short.gpu is not None
    if short.gpu.rows == 256:
        pytest.skip("this version needs less memory than the test leaves it")
    for layer in whole:
        assert np.abs(parts[layer] - whole[layer]).max() <= 1e-5 * np.abs(whole[layer]).max(), layer


def test_a_finished_extraction_leaves_no_memory_behind(many, tmp_path):
    extract(many, tmp_path / "a.h5", "cuda")
    before = torch.cuda.memory_allocated()
    extract(many, tmp_path / "b.h5", "cuda")
    assert torch.cuda.memory_allocated() <= before + 1_000_000
    assert before < 100_000_000


@pytest.mark.parametrize("decode", ["gpu", "auto"])
def test_whoever_decodes_every_row_is_its_image_or_its_failure(tmp_path, decode):
    cases = write_corpus(tmp_path / "corpus")
    options = {"batch_size": 8, "max_bad": 1.0}
    exact = extract(tmp_path / "corpus", tmp_path / "cpu.h5", "cuda", **options)
    mixed = extract(tmp_path / "corpus", tmp_path / "gpu.h5", "cuda", decode=decode, **options)
    np.testing.assert_array_equal(mixed.status, exact.status)
    assert len(cases) == len(mixed)
    good, pillow = exact.status == Status.DONE, mixed.decoder == Decoder.PILLOW
    for layer in exact:
        np.testing.assert_array_equal(mixed[layer][good & pillow], exact[layer][good & pillow])
        most = np.abs(exact[layer][good]).max()
        assert np.abs(mixed[layer] - exact[layer])[good].max() <= 5e-2 * most, layer


def test_most_photos_are_decoded_on_the_device_and_verify_passes_them(many, tmp_path):
    features = extract(many, tmp_path / "f.h5", "cuda", decode="gpu", batch_size=8)
    assert (features.decoder == Decoder.NVJPEG).all()
    assert verify_file(tmp_path / "f.h5", VerifyConfig(rows=8)).passed


def test_decoding_beside_queued_kernels_gives_the_same_pixels_every_time(tmp_path):
    """The hardware engine does not wait for streams: memory given to it must not be in use any more."""
    for index in range(24):  # 1.4 MB each when decoded, so that they come from the same pool as what is freed below
        write_photo(tmp_path / f"{index:02d}.jpg", index, (800, 600))
    recipe = recipe_for("cpu")
    files = [Encoded(path.read_bytes(), 480_000) for path in sorted(tmp_path.glob("*.jpg"))]
    decoder, wrong = DeviceDecoder(recipe.preprocess, torch.device("cuda")), []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                busy = torch.randn(1024, 1024, device="cuda")
                pieces = [torch.empty_like(busy) for _ in range(24)]
                for piece in pieces * 10:
                    torch.matmul(busy, busy, out=piece)
                del busy, piece, pieces  # free for the next tensors while the products are still queued
                if not torch.equal(decoder(files).cpu(), expected):
                    wrong.append(threading.current_thread().name)

    expected = decoder(files).cpu()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_streams_of_many_workers_do_not_mix_their_blocks(many):
    recipe = replace(recipe_for("cpu"), device=torch.device("cuda"))
    one, many_workers = streamed(many, recipe, workers=1)[0], streamed(many, recipe, workers=12)[0]
    for layer, values in one.items():
        np.testing.assert_array_equal(values, many_workers[layer])


@pytest.mark.parametrize("kind", ["svm", "softmax"])
@pytest.mark.parametrize("shape", [(300, 1000), (3000, 60)])
def test_a_head_fitted_on_the_gpu_reaches_the_cpus_optimum(kind, shape):
    generator = np.random.default_rng(0)
    labels = np.arange(shape[0]) % 5
    values = generator.normal(size=shape).astype(np.float32) + generator.normal(size=(5, shape[1]))[labels]
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    for c in (0.1, 10.0):
        here = solve(kind, values, labels, c, device=torch.device("cuda"))
        there = solve(kind, values, labels, c, tolerance=1e-6)
        assert here.certified.all()
        assert here.values.sum() <= there.values.sum() * (1 + 1e-4)


def test_extraction_and_head_on_the_gpu_classify_as_on_the_cpu(many, tmp_path):
    accuracy = []
    for device in ("cuda", "cpu"):
        extract(many, tmp_path / f"{device}.h5", device)
        config = FitConfig(layer="fc7", c=10.0, device=device)
        accuracy.append(
            fit_svm(tmp_path / f"{device}.h5", tmp_path / f"{device}.safetensors", config).metrics.accuracy
        )
    assert accuracy[0] == accuracy[1]


def test_layers_stay_on_the_gpu_between_extraction_and_heads(many, tmp_path):
    resident = DeviceCache()
    options = {"layers": "conv5,fc7", "weights": "random:0", "device": "cuda", "batch_size": 16}
    extract_features(many, tmp_path / "f.h5", ExtractConfig(**options), resident=resident)
    features = open_features(tmp_path / "f.h5")
    for layer in features:
        there = resident.values(features, layer)
        assert there.device.type == "cuda"
        np.testing.assert_array_equal(there.cpu().numpy(), features[layer].reshape(60, -1))
    found = {}
    for device in ("cuda", "cpu"):
        config = ProbeConfig(layers="conv5,fc7", weights="random:0", per_class=10, repeats=2, c=10.0, device=device)
        found[device] = [row.accuracy for row in probe_layers(many, tmp_path / device, config).rows]
    assert found["cuda"] == found["cpu"]


@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_predictions_of_a_head_on_the_gpu_are_those_of_the_cpu(many, tmp_path, kind):
    extract(many, tmp_path / "f.h5", "cuda")
    fit = fit_svm if kind == "svm" else fit_softmax
    fit(tmp_path / "f.h5", tmp_path / "head.safetensors", FitConfig(layer="fc7", c=10.0, device="cuda"))
    for device in ("cuda", "cpu"):
        config = PredictConfig(device=device, weights_file="random:0")
        predict_images(tmp_path / "head.safetensors", many, tmp_path / f"{device}.csv", config)
    tables = [pd.read_csv(tmp_path / f"{device}.csv") for device in ("cuda", "cpu")]
    assert tables[0]["class"].equals(tables[1]["class"])
    scores = [table.filter(like="score:").to_numpy() for table in tables]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def tuned(photos, out, **options):
    chosen = {"backbone": "alexnet-mini", "lr": "conv1-conv2=0,conv3-fc8=1e-3", "epochs": 2, "batch_size": 16,
              "augment": "flip,crop", "device": "cuda", **options}  # fmt: skip
    finetune_network(photos, out, FinetuneConfig(**chosen))
    return load_file(out / "model.safetensors")


def test_images_kept_on_the_gpu_train_to_the_same_weights_as_images_decoded_each_time(many, tmp_path):
    for index in range(60, 160):  # 1.7 MB of pixels to train on: more than the megabyte that is allowed
        write_photo(many / "abc"[index % 3] / f"{index:03d}.jpg", index)
    kept, decoded = tuned(many, tmp_path / "kept"), tuned(many, tmp_path / "decoded", memory=1_000_000)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, decoded[name], rtol=1e-5, atol=1e-6)


def test_frozen_layers_are_unchanged_to_the_last_bit_in_bf16_too(many, tmp_path):
    state = tuned(many, tmp_path / "run", precision="bf16")
    shipped = load_file(weights_of("alexnet-mini", "default").file)
    frozen = [
        name for name in shipped if name.startswith(("features.0.", "features.1.", "features.4.", "features.5."))
    ]
    assert len(frozen) >= 8
    for name in frozen:
        assert torch.equal(state[name], shipped[name].float()), name


def test_two_processes_on_one_gpu_train_as_one(many, tmp_path):
    words = ["finetune", str(many), "-b", "alexnet", "-w", "random:0", "--crop", "96", "--lr", "*=1e-3,conv1-conv5=0",
             "--epochs", "1", "--batch-size", "16", "--init-head", "random", "--dropout", "0", "--augment", "flip",
             "--device", "cuda:0"]  # fmt: skip
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        run = [*command, "-m", "featx", *words, "-o", str(tmp_path / str(count))]
        subprocess.run(run, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = (load_file(tmp_path / str(count) / "model.safetensors") for count in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
