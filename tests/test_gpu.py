"""The GPU gives what the CPU gives. Run on a machine with one: pytest -m gpu"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featx.config import ExtractConfig, VerifyConfig
from featx.extract import extract_features
from featx.store.reader import open_features
from featx.verify import verify_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
LAYERS = "conv1,conv5,fc6,fc7,prob"


def extract(photos, out, device, **options):
    chosen = ExtractConfig(layers=LAYERS, weights="random:0", device=device, **options)
    extract_features(photos, out, chosen)
    return open_features(out)


def test_strict_fp32_on_the_gpu_agrees_with_the_cpu(photos, tmp_path):
    gpu, cpu = (extract(photos, tmp_path / f"{device}.h5", device) for device in ("cuda", "cpu"))
    for layer in cpu:
        assert np.abs(gpu[layer] - cpu[layer]).max() <= 1e-5 * np.abs(cpu[layer]).max(), layer
    assert verify_file(tmp_path / "cuda.h5", VerifyConfig(rows=3)).passed


def test_two_runs_on_the_gpu_give_the_same_bytes(photos, tmp_path):
    extract(photos, tmp_path / "a.h5", "cuda", workers=1)
    extract(photos, tmp_path / "b.h5", "cuda", workers=4)
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
