"""A recipe at work: blocks of pixels go in, pooled features come out, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor, fx

from featx.device import strict_precision, upload
from featx.errors import FeatxError
from featx.heads.linear import LinearHead
from featx.heads.on_device import HeadOnDevice
from featx.images.decode import Decoder
from featx.images.feed import Block, BlockReader
from featx.images.on_device import DeviceDecoder, NotDecodable
from featx.images.preprocess import Preprocess
from featx.networks.backbones import LoadedNetwork, load_network
from featx.networks.packed import pack
from featx.networks.weights import Progress
from featx.on_gpu import GpuPipeline
from featx.recipe import Recipe
from featx.resident import ResidentLayers

FLOAT16_MAX = 65504.0
ON_CPU = ("cpu", "fast")  # ways of decoding that need no GPU
AT_ONCE = 4  # blocks that the GPU's decoder works on or has waiting while `--decode auto` leaves others to the CPU
SCORES = "scores"
_COMPUTE_TYPE = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_EXTREMES = "\0extremes"  # beside the layers' names: least and greatest value of each image in each layer
Arrays = dict[str, npt.NDArray[Any]]
Uploads = tuple[npt.NDArray[np.uint8], tuple[Tensor, Tensor] | None]


class Extractor:
    """pixels (B, 3, S, S) uint8 -> {layer: features (B, ...)}."""

    def __init__(self, recipe: Recipe, progress: Progress | None = None, head: LinearHead | None = None) -> None:
        """Load the network, and take the memory it needs on a GPU.

        Args:
            head: where given, its scores of its layer (B, K) take the place of the features, under the name `SCORES`.
        """
        self.recipe, self._head = recipe, head
        self._head_on_gpu = None
        self.specs = recipe.layer_specs()
        self._type = _COMPUTE_TYPE[recipe.precision]
        self._pixels = NormalisedPixels(recipe.preprocess, self._type, recipe.device)
        self._load(progress)
        gc.collect()  # traced networks point at themselves, and would keep the weights that packing gives free
        self._decoder = None if recipe.decode in ON_CPU else DeviceDecoder(recipe.preprocess, recipe.device)
        self._free_decoders = threading.Semaphore(AT_ONCE)
        self.resident: ResidentLayers | None = None  # what `features` leaves on the GPU
        self.gpu: GpuPipeline | None = None
        if recipe.device.type == "cuda" or recipe.decode not in ON_CPU:
            with self._on_the_gpu():
                self._head_on_gpu = None if head is None else HeadOnDevice(head, recipe.device)
                self.gpu = GpuPipeline(
                    self._compute_on_gpu,
                    batch_size=recipe.batch_size,
                    side=recipe.preprocess.crop,
                    device=recipe.device,
                )

    def _load(self, progress: Progress | None) -> None:
        recipe = self.recipe
        loaded: LoadedNetwork = load_network(recipe.backbone.name, recipe.weights, progress)
        self.weights_sha256 = loaded.sha256
        network = loaded.tapped(recipe.layers)
        network.to(recipe.device, self._type).to(memory_format=torch.channels_last)
        self._network: fx.GraphModule = network.eval()
        may_pack = recipe.device.type == "cpu" and recipe.decode in ON_CPU and not recipe.plain
        self.packed = may_pack and self._pack()

    def _pack(self) -> bool:
        side = self.recipe.preprocess.crop
        example = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
        with torch.inference_mode(), one_thread():
            packed = pack(self._network, self._pixels(example.transpose(0, 3, 1, 2)), self.recipe.batch_size)
        self._network = packed or self._network
        return packed is not None

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Arrays:
        """The pooled features of a block, as arrays of the recipe's dtype.

        Raises:
            FeatxError: a layer came out NaN or infinite, or does not fit into float16.
        """
        if self.gpu is None:
            return self._compute_on_cpu(pixels)
        with self._on_the_gpu(), self.gpu.features(lambda: (pixels, None)) as found:
            return {name: values.copy() for name, values in self._checked(found).items()}

    def claim_decoder(self) -> bool:
        """Whether the GPU is to decode the JPEGs of a block: with `--decode auto` if it has nothing else to do.

        Who has claimed it brings the block to `features`.
        """
        if self._decoder is None:
            return False
        return self.recipe.decode == "gpu" or self._free_decoders.acquire(blocking=False)

    @contextlib.contextmanager
    def features(self, block: Block, reader: BlockReader) -> Iterator[Arrays]:
        """As a call with the block's pixels, for arrays that need not live longer than the `with` statement.

        What the block has kept encoded is decoded here; if the GPU refuses it, by Pillow after all.
        """
        if self.gpu is None:
            yield self._compute_on_cpu(block.pixels)
            return
        keep = None
        if self.resident is not None:
            keep = functools.partial(self.resident.put, block.first, len(block.status))
        with self._on_the_gpu(), self.gpu.features(lambda: self._pixels_of(block, reader), keep) as found:
            yield self._checked(found)

    def _pixels_of(self, block: Block, reader: BlockReader) -> Uploads:
        """The block's pixels, and what of them the GPU has decoded."""
        if block.encoded is None or self._decoder is None:
            return block.pixels, None
        start = time.perf_counter()
        try:
            if not block.encoded:
                return block.pixels, None
            places = upload(torch.tensor(list(block.encoded)), self.recipe.device)
            pixels = self._decoder(list(block.encoded.values()))
            block.decoder[list(block.encoded)] = Decoder.NVJPEG
            return block.pixels, (places, pixels)
        except NotDecodable:
            reader.decode_encoded(block)
            return block.pixels, None
        finally:
            block.device_decode_s = time.perf_counter() - start
            if self.recipe.decode == "auto":
                self._free_decoders.release()

    def close(self) -> None:
        """Give the GPU's memory, and what is pinned for it, free for others; nothing can be computed any more."""
        if self.gpu is not None:
            self.gpu.close()
            self.gpu, self._network = None, fx.GraphModule({}, fx.Graph())
            gc.collect()  # traced networks point at themselves
            if self.recipe.device.type == "cuda":
                torch.cuda.empty_cache()

    def _compute_on_cpu(self, pixels: npt.NDArray[np.uint8]) -> Arrays:
        with torch.inference_mode():
            torch.set_num_threads(1)  # the other cores have pipelines of their own
            found = self._pooled(self._pixels(pixels))
            features = {name: self._finish(name, values) for name, values in found.items()}
        return features if self._head is None else {SCORES: self._head.scores(features[self._head.layer])}

    def _pooled(self, images: Tensor) -> dict[str, Tensor]:
        activations: dict[str, Tensor] = self._network(images)
        return {name: self.recipe.pooling(values.float()) for name, values in activations.items()}

    def _finish(self, name: str, features: Tensor) -> npt.NDArray[Any]:
        least, greatest = (float(v) for v in torch.aminmax(features))
        self._refuse_extremes(name, least, greatest)
        return self._as_stored(features).numpy()

    def _as_stored(self, features: Tensor) -> Tensor:
        return (features.half() if self.recipe.dtype == "float16" else features).contiguous()

    def _compute_on_gpu(self, images: Tensor) -> dict[str, Tensor]:
        """(rows, S, S, 3) uint8 -> layers, and their extremes (rows, L, 2); nothing in it waits for the device.

        The precision is set for the whole process: one thread at a time, which the pipeline sees to.
        """
        with strict_precision(self.recipe.precision):
            found = self._pooled(self._pixels.on_gpu(images))
        ends = [torch.stack(torch.aminmax(values.flatten(1), dim=1), 1) for values in found.values()]
        outputs = {name: self._as_stored(values) for name, values in found.items()}
        if self._head is not None and self._head_on_gpu is not None:
            outputs = {SCORES: self._head_on_gpu(outputs[self._head.layer])}
        return outputs | {_EXTREMES: torch.stack(ends, 1)}

    def _checked(self, found: Arrays) -> Arrays:
        """What the GPU gave, after a look at its layers' extremes."""
        extremes = found[_EXTREMES]
        for index, spec in enumerate(self.specs):
            least, greatest = extremes[:, index, 0].min(), extremes[:, index, 1].max()  # NaN stays NaN in both
            self._refuse_extremes(spec.name, float(least), float(greatest))
        return {name: values for name, values in found.items() if name != _EXTREMES}

    def _refuse_extremes(self, name: str, least: float, greatest: float) -> None:
        if not (np.isfinite(least) and np.isfinite(greatest)):
            raise FeatxError(
                f"layer {name} came out NaN or infinite with --precision {self.recipe.precision}; "
                f"{'the weights are broken' if self.recipe.precision == 'fp32' else 'use --precision fp32'}"
            )
        if self.recipe.dtype == "float16" and max(-least, greatest) > FLOAT16_MAX:
            raise FeatxError(f"layer {name} reaches {max(-least, greatest):g}; float16 ends at 65504. Use float32")

    @contextlib.contextmanager
    def _on_the_gpu(self) -> Iterator[None]:
        torch.set_num_threads(1)  # the other cores decode
        device = self.recipe.device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext(), torch.inference_mode():
            yield


class NormalisedPixels:
    """(B, 3, S, S) uint8 -> the same scaled to 0..1, less the mean, over the deviation; channels last, on the device.

    The result of a call, on a CPU, lies in memory that belongs to the thread and is overwritten by its next block:
    fresh memory costs more than the arithmetic. Image by image, for the same reason: one fits the cache.
    """

    def __init__(self, preprocess: Preprocess, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._mean = torch.tensor(preprocess.mean, device=device)
        self._std = torch.tensor(preprocess.std, device=device)
        self._own = threading.local()

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(pixels).permute(0, 2, 3, 1)
        return self._by_rows(images.contiguous()).permute(0, 3, 1, 2)

    def on_gpu(self, images: Tensor) -> Tensor:
        """The same of (B, S, S, 3) on the device."""
        normalised = images.float().div_(255).sub_(self._mean).div_(self._std)
        return normalised.to(self._dtype).permute(0, 3, 1, 2)

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
    if extractor.gpu is not None:
        how = "a CUDA graph" if extractor.gpu.is_graph else "kernel by kernel"
        parts = "" if extractor.gpu.rows == extractor.recipe.batch_size else f", {extractor.gpu.rows} images at once"
        return f"{torch.cuda.get_device_name(device)}, {how}{parts}"
    how = "packed weights" if extractor.packed else "PyTorch's modules"
    return f"CPU {torch.backends.cpu.get_cpu_capability()}, {how}"
