"""Images in, features out, block by block: what `extract`, `predict` and `check` have in common.

On a CPU every worker thread is a pipeline of its own: it reads, decodes, computes and hands over one block after
the other, using one core. So the result cannot depend on the number of workers, decoding overlaps the network
without being arranged, and memory is bounded by the number of workers whatever the number of images. On a GPU
the workers decode and take turns on the device.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor, fx

from featx.device import keep_freed_memory
from featx.errors import FeatxError
from featx.images.decode import Status, quiet_pillow
from featx.images.feed import Block, BlockReader, run_workers
from featx.images.preprocess import Preprocess
from featx.images.scan import Manifest
from featx.networks.backbones import LoadedNetwork, load_network
from featx.networks.packed import pack
from featx.networks.weights import Progress
from featx.recipe import Recipe

FLOAT16_MAX = 65504.0
_COMPUTE_TYPE = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Extractor:
    """pixels (B, 3, S, S) uint8 -> {layer: features (B, ...)}; loads the network when it is made."""

    def __init__(self, recipe: Recipe, progress: Progress | None = None) -> None:
        self.recipe = recipe
        self.specs = recipe.layer_specs()
        loaded: LoadedNetwork = load_network(recipe.backbone.name, recipe.weights, progress)
        self.weights_sha256 = loaded.sha256
        self._type = _COMPUTE_TYPE[recipe.precision]
        network = loaded.tapped(recipe.layers)
        network.to(recipe.device, self._type).to(memory_format=torch.channels_last)
        self._network: fx.GraphModule = network.eval()
        self._pixels = NormalisedPixels(recipe.preprocess, self._type, recipe.device)
        self.packed = recipe.device.type == "cpu" and self._pack()
        self._turn = threading.Lock()
        del loaded, network
        gc.collect()  # traced networks point at themselves, and would keep the weights that packing gives free

    def _pack(self) -> bool:
        side = self.recipe.preprocess.crop
        example = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
        with torch.inference_mode(), one_thread():
            packed = pack(self._network, self._pixels(example.transpose(0, 3, 1, 2)))
        self._network = packed or self._network
        return packed is not None

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """The pooled features of a block, as arrays of the recipe's dtype.

        Raises:
            FeatxError: a layer came out NaN or infinite, or does not fit into float16.
        """
        with torch.inference_mode():
            if self.recipe.device.type == "cpu":
                torch.set_num_threads(1)  # the other cores have pipelines of their own
                return self._compute(pixels)
            with self._turn, strict_precision(self.recipe.precision):
                return self._compute(pixels)

    def _compute(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        activations: dict[str, Tensor] = self._network(self._pixels(pixels))
        return {name: self._finish(name, values) for name, values in activations.items()}

    def _finish(self, name: str, activations: Tensor) -> npt.NDArray[Any]:
        features = self.recipe.pooling(activations.float())
        least, greatest = (float(v) for v in torch.aminmax(features))
        if not (np.isfinite(least) and np.isfinite(greatest)):
            raise FeatxError(
                f"layer {name} came out NaN or infinite with --precision {self.recipe.precision}; "
                f"{'the weights are broken' if self.recipe.precision == 'fp32' else 'use --precision fp32'}"
            )
        if self.recipe.dtype == "float16":
            if max(-least, greatest) > FLOAT16_MAX:
                raise FeatxError(
                    f"layer {name} reaches {max(-least, greatest):g}; float16 ends at 65504. Use float32"
                )
            features = features.half()
        return features.contiguous().cpu().numpy()


class NormalisedPixels:
    """(B, 3, S, S) uint8 -> the same scaled to 0..1, less the mean, over the deviation; channels last, on the device.

    On a CPU the result lies in memory that belongs to the thread and is overwritten by its next block: fresh memory
    costs more than the arithmetic. Image by image, for the same reason: one fits the cache.
    """

    def __init__(self, preprocess: Preprocess, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._mean = torch.tensor(preprocess.mean, device=device)
        self._std = torch.tensor(preprocess.std, device=device)
        self._own = threading.local()

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(pixels).permute(0, 2, 3, 1)
        if self._device.type == "cpu":
            return self._by_rows(images.contiguous()).permute(0, 3, 1, 2)
        normalised = images.to(self._device).float().div_(255).sub_(self._mean).div_(self._std)
        return normalised.to(self._dtype).contiguous().permute(0, 3, 1, 2)

    def _by_rows(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) -> the same; a row of W pixels is one long vector for the processor."""
        count, height, width, _ = images.shape
        mean, std = self._mean.repeat(width), self._std.repeat(width)
        values, result = self._memory(height, width * 3, count)
        for image, target in zip(images.view(count, height, -1), result, strict=True):
            values.copy_(image).div_(255).sub_(mean).div_(std)
            target.copy_(values)
        return result.view(count, height, width, 3)

    def _memory(self, height: int, row: int, count: int) -> tuple[Tensor, Tensor]:
        held: tuple[Tensor, Tensor] | None = getattr(self._own, "held", None)
        if held is None or held[1].shape != (count, height, row):
            held = torch.empty(height, row), torch.empty(count, height, row, dtype=self._dtype)
            self._own.held = held
        return held


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread in here: the other cores have pipelines of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def strict_precision(precision: str) -> Iterator[None]:
    """Float32 means float32 on a GPU: TF32 only where it was asked for; the same kernels every time."""
    mode = "tf32" if precision == "tf32" else "ieee"
    cudnn: Any = torch.backends.cudnn
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        try:
            for backend in backends:
                backend.fp32_precision = mode
            yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                backend.fp32_precision = value


@dataclass
class Stages:
    """Seconds the workers spent on each stage, summed over workers."""

    seconds: dict[str, float] = field(
        default_factory=lambda: {"read": 0.0, "decode": 0.0, "network": 0.0, "write": 0.0}
    )
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **seconds: float) -> None:
        with self.lock:
            for stage, value in seconds.items():
                self.seconds[stage] += value

    def shares(self) -> dict[str, float]:
        """Stage -> share of the workers' time."""
        total = sum(self.seconds.values()) or 1.0
        return {stage: value / total for stage, value in self.seconds.items()}

    @property
    def bound_by(self) -> str:
        """What takes most of the time: decode, network or disk."""
        shares = self.shares()
        groups = {
            "decode": shares["decode"],
            "network": shares["network"],
            "disk": shares["read"] + shares["write"],
        }
        return max(groups, key=lambda group: groups[group])


Sink = Callable[[Block, dict[str, npt.NDArray[Any]]], None]


def stream_features(
    manifest: Manifest,
    extractor: Extractor,
    sink: Sink,
    *,
    blocks: Iterable[int],
    workers: int | None,
    stop: threading.Event,
) -> Stages:
    """Compute the features of some blocks and hand each to `sink`, from several threads, in any order.

    Args:
        sink: gets the block and {layer: (B, ...)}, B without padding, failed images' rows NaN.
        blocks: their first rows, multiples of the recipe's batch size.
        workers: threads; by default one per core this process may use.
        stop: set it to finish the blocks in hand and return.
    """
    recipe, stages = extractor.recipe, Stages()
    reader = BlockReader(manifest, recipe.preprocess, recipe.batch_size, exif=recipe.exif)

    def work(first: int) -> None:
        block = reader.block(first)
        start = time.perf_counter()
        features = extractor(block.pixels)
        for values in features.values():
            values[: len(block.status)][block.status != Status.DONE] = np.nan
        middle = time.perf_counter()
        sink(block, {name: values[: len(block.status)] for name, values in features.items()})
        end = time.perf_counter()
        stages.add(read=block.read_s, decode=block.decode_s, network=middle - start, write=end - middle)

    if recipe.device.type == "cpu":
        keep_freed_memory()
    with quiet_pillow(), one_thread():
        run_workers(blocks, workers or usable_cores(), work, stop)
    return stages


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def versions() -> dict[str, str]:
    """What features depend on besides the recipe."""
    from featx import __version__
    from featx.images.decode import decoder_version

    return {
        "featx": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "decoder": decoder_version(),
    }


def hardware(extractor: Extractor) -> str:
    """The processor's instruction set and how the network runs on it, or the GPU's name."""
    device = extractor.recipe.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    how = "packed weights" if extractor.packed else "PyTorch's modules"
    return f"CPU {torch.backends.cpu.get_cpu_capability()}, {how}"
