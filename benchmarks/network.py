"""How near the network comes to the core's own limit: images per second of one pipeline, one thread.

    pip install onnxruntime onnxscript openvino
    taskset -c 0 python benchmarks/network.py [--repeats 5] [--precision fp32] [--case 0]

The limit is a matrix product of 2048 x 2048, measured in between. featx's packed network is compared with PyTorch's
modules as people run them (NCHW), with channels last, and, in bf16, with autocast; and with ONNX Runtime and
OpenVINO, one thread each, which get the same network from torch.onnx.export. Random weights, pixels of noise;
the variants take turns, the best of all repeats counts, and every result is compared with float64.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import openvino
import torch
from environment import machine
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from featx.extraction.engine import Engine
from featx.extraction.recipe import Recipe
from featx.runtime.text import table

CASES = [("alexnet", "fc7", "classifier.5"), ("alexnet", "conv3", "features.7"), ("vgg16", "fc7", "classifier.4")]


def product(dtype: torch.dtype) -> Callable[[], object]:
    left, right = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return lambda: left @ right


def seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The best time of each, taking turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats + 1):  # the first turn packs and warms up; it can hardly be the best
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


class Alone(nn.Module):
    """A network whose only output is that of a node."""

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        self.network, self.node = network, node

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.network(pixels)[self.node]
        return found


def peers(network: nn.Module, node: str, pixels: Tensor, precision: str) -> dict[str, Callable[[], object]]:
    """The same network in ONNX Runtime, which computes in float32 on a CPU, and in OpenVINO."""
    values = pixels.float().numpy()
    runs: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/network.onnx"
        torch.onnx.export(Alone(network, node).eval(), (pixels.float(),), path, dynamo=True, verbose=False)
        if precision == "fp32":
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            given = session.get_inputs()[0].name
            runs["ONNX Runtime"] = lambda: torch.from_numpy(session.run(None, {given: values})[0])
        hints = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
        }
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        request = compiled.create_infer_request()
        shared = openvino.Tensor(values, shared_memory=True)

        def openvinos() -> Tensor:
            request.infer([shared])
            return torch.from_numpy(request.get_output_tensor().data.copy())

        runs["OpenVINO"] = openvinos
    return runs


def compare(name: str, layer: str, node: str, precision: str, repeats: int) -> list[list[str]]:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    recipe = Recipe.plan(
        backbone=name, layers=layer, weights="random:0", pool="none", precision=precision, device="cpu"
    )
    extractor, count = Engine(recipe), recipe.batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), np.uint8).transpose(0, 3, 1, 2)
    prepared = extractor._pixels(pixels)

    def module() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create_feature_extractor(get_model(name, weights=None).eval(), [node])

    as_usual, last = module().to(dtype), module().to(dtype).to(memory_format=torch.channels_last)
    nchw = prepared.contiguous().clone()
    runs: dict[str, Callable[[], object]] = {
        "limit": product(dtype),
        "PyTorch, NCHW": lambda: as_usual(nchw)[node],
        "PyTorch, channels last": lambda: last(prepared)[node],
        "featx, packed": lambda: extractor._network(prepared)[layer],
    }
    runs |= peers(module(), node, nchw, precision)
    if precision == "bf16":
        whole = module()
        floats = nchw.float()

        def autocast() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                found: Tensor = whole(floats)[node]
                return found

        runs["PyTorch, autocast"] = autocast
    best = seconds(runs, repeats)
    operations = 2 * recipe.backbone.describe(recipe.layers)[0].multiply_adds
    limit = 2 * 2048**3 / best.pop("limit")
    exact = module().double()(prepared.double())[node]
    rows = []
    for way, took in best.items():
        found = runs[way]()
        assert isinstance(found, Tensor)
        worst = float((found.double() - exact).abs().max() / exact.abs().max())
        rows.append(
            [
                f"{name} {layer} {precision}",
                way,
                f"{count / took:.1f}",
                f"{operations * count / took / 1e9:.0f}",
                f"{operations * count / took / limit:.0%}",
                f"{best['PyTorch, NCHW'] / took:.2f}",
                f"{worst:.0e}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="one of them; else both")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="one of the networks; else all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = ["case", "way", "images/s", "Gflop/s", "of a matrix product", "ratio", "difference from float64"]
    with torch.inference_mode():
        cases = CASES if options.case is None else [CASES[options.case]]
        ways = [options.precision] if options.precision else ["fp32", "bf16"]
        rows = [row for case in cases for way in ways for row in compare(*case, way, options.repeats)]
    print(machine())
    print("\n".join(table(header, rows, left=2)))


if __name__ == "__main__":
    main()
