"""A GPU's ceilings first, then every path of featx as a share of them: one run, under ten minutes.

    python benchmarks/gpu.py PHOTOS [--images 20000] [--only extract] [--imagenet]

PHOTOS is a folder of JPEGs, linked as often as needed; without one, pictures of noise are made. The table goes to the
screen, everything as JSON into benchmarks/results/. `--imagenet` adds a head of ImageNet's size (1.28 million rows of
4,096 values, 1,000 classes; 48 GB of memory). `--device cpu --quick` runs the same lines without a GPU, to see
that they do: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from environment import machine
from extract import collect_photos, usual_script
from gpu_picture import draw
from heads import FOLDS, objective, relu_like
from torchvision.models import get_model

from featx.commands.extract import extract_features
from featx.commands.finetune import finetune_network
from featx.commands.verify import verify_file
from featx.errors import VerificationFailed
from featx.extraction.engine import Engine
from featx.extraction.recipe import Recipe
from featx.heads.selection.search import fit_heads
from featx.heads.solver.solver import solve
from featx.images.device_decode import DeviceDecoder
from featx.images.processes.pool import decoding
from featx.images.reader import BlockReader
from featx.images.sources.scan import scan
from featx.networks.architectures.mini import NAMES, SIDE
from featx.networks.build import construct
from featx.options.extraction import ExtractConfig, VerifyConfig
from featx.options.training import FinetuneConfig
from featx.runtime.device import strict_precision
from featx.runtime.progress import Reporter
from featx.runtime.text import table
from featx.runtime.threads import run_workers, usable_cores
from featx.store.open import open_features

GFLOP = {"alexnet": 1.420, "vgg16": 30.93}  # of one image up to fc7
EXTRACTIONS = [
    ("alexnet", "fp32", "cpu"), ("alexnet", "bf16", "cpu"), ("alexnet", "bf16", "auto"), ("alexnet", "bf16", "gpu"),
    ("vgg16", "fp32", "cpu"), ("vgg16", "tf32", "cpu"), ("vgg16", "bf16", "cpu"), ("vgg16", "bf16", "auto"),
]  # fmt: skip
CLASSES = 10
_EPOCHS = 6
Rows = list[list[str]]


class Bench:
    """The device, how much of everything, and what was found."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.device, self.quick, self.scratch = torch.device(options.device), options.quick, scratch
        self.images = 64 if options.quick else options.images
        self.photos, self.cases = scratch / "photos", options.cases.split(",") if options.cases else []
        collect_photos(options.photos, scratch / "some", min(self.images, 500))
        some = sorted((scratch / "some" / "all").iterdir())
        for index in range(self.images):
            folder = self.photos / f"class{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            os.link(some[index % len(some)], folder / f"{index:06d}.jpg")
        self.found: dict[str, Any] = {"machine": machine(), "images": self.images}

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Of one call, the best of a few, after one to warm up."""
        work()
        best = float("inf")
        for _ in range(1 if self.quick else repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            best = min(best, time.perf_counter() - start)
        return best


def show(title: str, header: list[str], rows: Rows) -> None:
    print(f"\n{title}", *table(header, rows), sep="\n", flush=True)


def ceilings(bench: Bench) -> None:
    """What the machine allows, whoever asks."""
    size = 512 if bench.quick else 8192
    found: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        with strict_precision(name):
            found[f"matrix product {name}, Tflop/s"] = 2e-12 * size**3 / bench.seconds(lambda a=a, b=b: a @ b)
    block = torch.empty((1 << 24) if bench.quick else (1 << 30), dtype=torch.uint8, device=bench.device)
    other, host = torch.empty_like(block), torch.empty(len(block), dtype=torch.uint8, pin_memory=bench.on_gpu)
    found["copy on the device, GB/s"] = 2e-9 * len(block) / bench.seconds(lambda: other.copy_(block))
    found["copy to the device, GB/s"] = (
        1e-9 * len(block) / bench.seconds(lambda: block.copy_(host, non_blocking=True))
    )
    found["copy from the device, GB/s"] = (
        1e-9 * len(block) / bench.seconds(lambda: host.copy_(block, non_blocking=True))
    )
    values = np.ones(len(block) // 4, np.float32)

    def write() -> None:
        with (bench.scratch / "disk").open("wb") as file:
            file.write(memoryview(values))
            os.fsync(file.fileno())

    found["disk, flushed, GB/s"] = 1e-9 * values.nbytes / bench.seconds(write, 2)
    found |= _decoding(bench)
    bench.found["ceilings"] = found
    show("ceilings", ["what", "found"], [[name, f"{value:,.1f}"] for name, value in found.items()])


def _decoding(bench: Bench) -> dict[str, float]:
    """Images per second of Pillow on all cores, of the device's decoder, and of its resizing."""
    recipe = Recipe.plan(backbone="alexnet", layers="fc7", weights="random:0", pool="none", device=str(bench.device))
    manifest = scan(bench.photos)
    count, size = min(len(manifest), 64 * usable_cores() * (1 if bench.quick else 4)), 64
    reader, stop = BlockReader(manifest, recipe.preprocess, size), threading.Event()
    blocks, cores = range(0, count - size + 1, size), usable_cores()
    with decoding(reader, cores) as many:
        pillow = bench.seconds(lambda: run_workers(blocks, cores, lambda b: _ignore(many.block(b)), stop), 2)
    block = BlockReader(manifest, recipe.preprocess, min(128, len(manifest))).block(0, keep_encoded=True)
    files = list((block.encoded or {}).values())
    contents, decoder = [file.content for file in files], DeviceDecoder(recipe.preprocess, bench.device)
    found = {
        "decoding by Pillow, all cores, images/s": len(blocks) * size / pillow,
        "decoding on the device, images/s": _at_once(bench, 1, len(contents), lambda: decoder.decode(contents)),
    }
    several = {count: _at_once(bench, count, len(files), lambda: decoder(files)) for count in (1, 2, 4)}
    found |= {f"decoding and resizing there, {n} at once, images/s": rate for n, rate in several.items()}
    return found | {"decoding and resizing there, images/s": max(several.values())}


def _at_once(bench: Bench, count: int, images: int, work: Callable[[], object]) -> float:
    """Images per second of `count` threads that all do the same, each on a stream of its own."""

    def repeated(_: int) -> None:
        stream = torch.cuda.stream(torch.cuda.Stream(bench.device)) if bench.on_gpu else contextlib.nullcontext()
        with stream:
            for _ in range(5):
                work()

    return count * 5 * images / bench.seconds(lambda: run_workers(range(count), count, repeated, threading.Event()))


def _ignore(_: object) -> None:
    """What a worker gives back is not wanted."""


def extraction(bench: Bench) -> None:
    """Files to HDF5, the network alone, and the usual script."""
    rows, results = [], {}
    limits = bench.found["ceilings"]
    for name, precision, decode in EXTRACTIONS:
        if bench.cases and f"{name} {precision} {decode}" not in bench.cases:
            continue
        if not bench.on_gpu and (precision == "tf32" or decode != "cpu"):
            continue
        alone = _network_alone(bench, name, precision)
        config = ExtractConfig(
            backbone=name,
            layers="fc7",
            weights="random:0",
            device=str(bench.device),
            precision=precision,
            decode=decode,
        )
        output = bench.scratch / f"{name}-{precision}-{decode}.h5"
        report = extract_features(bench.photos, output, config)
        try:
            verify_file(output, VerifyConfig(rows=4))
        except VerificationFailed as error:  # said, and the other figures kept
            print(f"NOT RIGHT: {error}")
        alone_at = _limits_of(limits, decode, alone)
        by = min(alone_at, key=lambda stage: alone_at[stage])
        product = limits[f"matrix product {precision}, Tflop/s"]
        results[f"{name} {precision} {decode}"] = {
            "images_per_second": report.images_per_second, "limits": alone_at, "bound_by": by,
            "shares": report.shares, "of_product": alone * GFLOP[name] / 1000 / product, "of_limit":
            report.images_per_second / alone_at[by], "by_device": int(open_features(output).decoder.sum()),
        }  # fmt: skip
        rows.append([
            f"{name} fc7 {precision}, decode {decode}", f"{report.images_per_second:,.0f}",
            *(f"{rate:,.0f}" for rate in alone_at.values()), f"{alone * GFLOP[name] / 1000 / product:.0%}",
            f"{report.images_per_second / alone_at[by]:.0%} of {by}",
        ])  # fmt: skip
        if decode != "auto":
            output.unlink()
    header = ["case", "images/s", *_limits_of(limits, "cpu", 1.0), "network of the product", "share of the limit"]
    show("extraction", header, rows)
    bench.found["extraction"] = results
    if bench.on_gpu:
        results["usual script alexnet fp32"] = rate = _usual_script(bench)
        print(f"the usual script, AlexNet fc7, fp32, {usable_cores()} workers: {rate:,.0f}/s")
        if "alexnet fp32 cpu" in results:
            print(f"featx {results['alexnet fp32 cpu']['images_per_second'] / rate:.1f} x")


def _limits_of(found: dict[str, float], decode: str, network: float) -> dict[str, float]:
    """Images per second that each stage allows if it is alone: 224 x 224 pixels go up, 4,096 values come down."""
    pillow, device = found["decoding by Pillow, all cores, images/s"], found["decoding and resizing there, images/s"]
    pixels, values = 224 * 224 * 3 * 1e-9, 4096 * 4e-9
    return {
        "decode": {"cpu": pillow, "gpu": device, "auto": pillow + device}[decode],
        "copy": min(found["copy to the device, GB/s"] / pixels, found["copy from the device, GB/s"] / values),
        "network": network,
        "disk": found["disk, flushed, GB/s"] / values,
    }


def _network_alone(bench: Bench, name: str, precision: str) -> float:
    """Images per second of the network with blocks on the device already."""
    recipe = Recipe.plan(
        backbone=name, layers="fc7", weights="random:0", pool="none", device=str(bench.device),
        precision=precision,
    )  # fmt: skip
    extractor = Engine(recipe)
    count = 1 if bench.quick else 20
    if extractor.gpu is None:
        pixels = np.zeros((recipe.batch_size, 224, 224, 3), np.uint8).transpose(0, 3, 1, 2)
        return recipe.batch_size / bench.seconds(lambda: extractor(pixels))
    gpu = extractor.gpu

    def run() -> None:
        with torch.inference_mode(), torch.cuda.stream(gpu._stream):
            for _ in range(count):
                gpu._run()

    return gpu.rows * count / bench.seconds(run)


def _usual_script(bench: Bench) -> float:
    """The hand-written way: DataLoader at one worker per core, pinned memory, the network on the GPU, h5py."""
    spent = usual_script(
        bench.photos, bench.scratch / "usual.h5", "alexnet", "classifier.5", usable_cores(), device=bench.device
    )
    return bench.images / spent


def heads(bench: Bench) -> None:
    """The whole grid at Caltech's size, one fit beside the CPU's float64 objective, and ImageNet's size."""
    n, width, classes = (202, 64, 101) if bench.quick else (3030, 4096, 101)
    values, labels = relu_like(n, width, classes, 0.78)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    names = [str(k) for k in range(classes)]
    rows, results = [], {}
    for kind in ("svm", "softmax"):
        on_device, on_cpu = solve(kind, values, labels, 1.0, device=bench.device), solve(kind, values, labels, 1.0)
        best = objective(kind, values, labels, on_cpu.weights, on_cpu.bias, 1.0)
        above = objective(kind, values, labels, on_device.weights, on_device.bias, 1.0) / best - 1

        def grid(kind: str = kind, values: Any = values) -> Any:
            return fit_heads(
                kind, values, np.arange(n), labels, names, c=None, folds=2 if bench.quick else FOLDS, seed=0,
                normalize="none", device=bench.device, memory_bytes=8 << 30,
            )  # fmt: skip

        def fit(kind: str = kind) -> Any:
            return solve(kind, values, labels, 1.0, device=bench.device)

        open_ = len(grid().uncertified)
        there = torch.from_numpy(values).to(bench.device)
        grid_s, fit_s = bench.seconds(grid, 2), bench.seconds(fit)
        resident_s = bench.seconds(lambda grid=grid, there=there: grid(values=there), 2)
        results[kind] = {
            "grid_s": grid_s, "grid_of_resident_features_s": resident_s, "fit_s": fit_s, "above_cpu": above,
            "uncertified": open_,
        }  # fmt: skip
        rows.append([
            f"{kind} {n}x{width}x{classes}", f"{fit_s:.3f} s", f"{grid_s:.2f} s", f"{resident_s:.2f} s",
            f"{above:.0e}", f"{open_}",
        ])  # fmt: skip
    header = ["problem", "one fit", "7 C x 5 folds", "features on the device", "above the CPU", "not certified"]
    show("heads", header, rows)
    bench.found["heads"] = results


def imagenet(bench: Bench) -> None:
    """1.28 million rows, made of a few thousand by mixing pairs of one class, at one C."""
    n, width, classes = (4000, 64, 20) if bench.quick else (1_281_167, 4096, 1000)
    few = torch.from_numpy(relu_like(classes * 8, width, classes, 0.78)[0]).to(bench.device)
    generator = torch.Generator(bench.device).manual_seed(0)

    def drawn(high: int, count: int) -> torch.Tensor:
        return torch.randint(0, high, (count,), device=bench.device, generator=generator)

    of = drawn(classes, n)
    values = np.empty((n, width), np.float16)
    for start in range(0, n, 1 << 15):
        part = of[start : start + (1 << 15)]
        share = torch.rand(len(part), 1, device=bench.device, generator=generator)
        mixed = torch.lerp(*(few[part + classes * drawn(8, len(part))] for _ in range(2)), share)
        values[start : start + len(part)] = F.normalize(mixed).half().cpu().numpy()
    del few
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    start_s = time.perf_counter()
    labels = of.cpu().numpy().astype(np.int32)
    found = solve("svm", values, labels, 1.0, device=bench.device)  # a softmax needs all classes at once
    spent = time.perf_counter() - start_s
    peak = torch.cuda.max_memory_allocated(bench.device) if bench.on_gpu else 0
    print(
        f"svm {n:,} x {width} x {classes}: {spent:.0f} s, {peak / 1e9:.0f} GB on the device, proven within "
        f"{float(found.gaps.sum() / found.values.sum()):.0e}, certified: {bool(found.certified.all())}"
    )
    bench.found["imagenet"] = {
        "seconds": spent, "peak_bytes": peak, "certified": bool(found.certified.all()), "gap": found.gap,
    }  # fmt: skip


class Clock(Reporter):
    """Notes when epochs of the training are done: then the device has computed everything that was queued."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def note(self, text: str) -> None:
        if text.startswith("epoch"):
            self.times.append(time.perf_counter())


def training(bench: Bench) -> None:
    """Steps of a full fine-tuning, and of the same network on made-up images that are on the device already."""
    rows, results = [], {}
    photos, images = bench.scratch / "some-photos", min(bench.images, 6144)
    for photo in sorted(bench.photos.glob("*/*"), key=lambda path: path.name)[:images]:
        target = photos / photo.relative_to(bench.photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(photo, target)
    cases = [("alexnet", False), ("alexnet", True), ("vgg16", False), ("vgg-mini", False), ("vgg-mini", True)]
    for name, compiled in cases[:2] if bench.quick else cases:
        batch = 8 if bench.quick else {"alexnet": 512, "vgg16": 128, "vgg-mini": 256}[name]
        made_up = _synthetic(bench, name, batch)
        clock, config = Clock(), FinetuneConfig(
            backbone=name, from_scratch=True, lr="*=1e-4", epochs=_EPOCHS, batch_size=batch,
            init_head="random", val=0.0, precision="bf16", device=str(bench.device), compile=compiled,
        )  # fmt: skip
        finetune_network(photos, bench.scratch / f"run-{name}-{compiled}", config, reporter=clock)
        # Without the first two epochs, in which everything is loaded, chosen and compiled.
        real = batch * (images // batch) * (_EPOCHS - 2) / (clock.times[-1] - clock.times[1])
        how = ", --compile" if compiled else ""
        results[name + how] = {"images_per_second": real, "synthetic": made_up}
        case = f"{name}, {batch} images a step, bf16{how}"
        rows.append([case, f"{real:,.0f}", f"{made_up:,.0f}", f"{real / made_up:.0%}"])
    show("training", ["case", "images/s", "on made-up images", "share"], rows)
    bench.found["training"] = results


def _synthetic(bench: Bench, name: str, batch: int) -> float:
    fresh = construct(name, seed=0) if name in NAMES else get_model(name, weights=None, num_classes=CLASSES)
    side = SIDE if name in NAMES else 224
    network = fresh.to(bench.device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9)
    pixels = torch.randn(batch, 3, side, side, device=bench.device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=bench.device)
    count = 1 if bench.quick else 10

    def steps() -> None:
        for _ in range(count):
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(bench.device.type, torch.bfloat16):
                logits = network(pixels)
            F.cross_entropy(logits.float(), labels).backward()
            optimiser.step()

    return batch * count / bench.seconds(steps, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--imagenet", action="store_true")
    parser.add_argument("--cases", default="", help="some of extract's, as 'alexnet fp32 cpu,vgg16 bf16 auto'")
    parser.add_argument("--only", default="extract,heads,train", help="some of these")
    options = parser.parse_args()
    known = {" ".join(case) for case in EXTRACTIONS}
    if unknown := set(filter(None, options.cases.split(","))) - known:
        parser.error(f"--cases: {', '.join(sorted(unknown))} is none of {', '.join(sorted(known))}")
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        print(bench.found["machine"])
        ceilings(bench)
        name = torch.cuda.get_device_name(bench.device) if bench.on_gpu else "cpu"
        folder = bench.scratch if options.quick else options.results
        folder.mkdir(exist_ok=True)
        target = folder / f"gpu-{name.lower().replace(' ', '-')}.json"
        parts = {
            "extract": lambda: extraction(bench),
            "heads": lambda: heads(bench),
            "train": lambda: training(bench),
            "imagenet": lambda: imagenet(bench),
        }
        for part in [*options.only.split(","), *(["imagenet"] if options.imagenet else [])]:
            parts[part]()
            target.write_text(json.dumps(bench.found, indent=1) + "\n")
        pictures = draw(bench.found, target.with_suffix(".png")) if "extraction" in bench.found else None
        if not options.quick:
            print("\nwritten:", *filter(None, (target, pictures)))


if __name__ == "__main__":
    main()
