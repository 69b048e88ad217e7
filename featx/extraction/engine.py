"""A recipe at work: blocks of pixels go in, pooled features come out, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from featx.errors import FeatxError
from featx.extraction.cpu_kernels.packing import pack
from featx.extraction.cpu_kernels.whole_vectors import fill_vectors
from featx.extraction.gpu.cuda import GpuPipeline
from featx.extraction.gpu.device_cache import DeviceCache
from featx.extraction.pixel_scaling import NormalisedPixels
from featx.extraction.recipe import Recipe
from featx.heads.device_head import HeadOnDevice
from featx.heads.linear_head import LinearHead
from featx.images.block import Block
from featx.images.device_decode import DeviceDecoder, NotDecodable
from featx.images.reader import BlockDecoder
from featx.networks.download import Progress
from featx.networks.graph.layout import MAP
from featx.networks.load import LoadedNetwork, load_network
from featx.networks.pooling import Pooling, pool_views
from featx.runtime.device import strict_precision, upload
from featx.runtime.memory import return_freed_memory
from featx.runtime.threads import one_thread
from featx.status import Decoder

FLOAT16_MAX = 65504.0
ON_CPU = ("cpu", "fast")  # ways of decoding that need no GPU
BLOCKS_ON_GPU = 4  # decoded or waiting there before `--decode auto` leaves further blocks to the CPU
SCORES = "scores"
_COMPUTE_TYPE = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_EXTREMES = "\0extremes"  # beside the layers' names: least and greatest value of each image in each layer
_TRIED_SIZES = (1, 2, 3, 7)  # of blocks, for `partial_blocks_agree`
Arrays = dict[str, npt.NDArray[Any]]
Uploads = tuple[npt.NDArray[np.uint8], tuple[Tensor, Tensor] | None]


def score_names(heads: int) -> list[str]:
    """What the scores of so many heads are called."""
    return [SCORES] if heads == 1 else [f"{SCORES}-{number}" for number in range(heads)]


class Engine:
    """pixels (B, 3, S, S) uint8 -> {layer: features (B, ...)}."""

    def __init__(self, recipe: Recipe, progress: Progress | None = None, heads: Sequence[LinearHead] = ()) -> None:
        """Load the network, and take the memory it needs on a GPU.

        Args:
            heads: where given, their scores (B, K) take the place of the features, as `score_names` calls them.
        """
        self.recipe, self._heads = recipe, dict(zip(score_names(len(heads)), heads, strict=True))
        self.specs = recipe.layer_specs()
        self._type = _COMPUTE_TYPE[recipe.precision]
        self._layouts = {one.name: recipe.backbone.geometry_of(one).layout for one in recipe.layers}
        reduced = recipe.reduction.layers if recipe.reduction else {}
        self._project = {name: one.on(recipe.device) for name, one in reduced.items()}
        self._pixels = NormalisedPixels(recipe.preprocess, self._type, recipe.device)
        self._load(progress)
        return_freed_memory()
        self._decoder = None if recipe.decode in ON_CPU else DeviceDecoder(recipe.preprocess, recipe.device)
        self._free_decoders = threading.Semaphore(BLOCKS_ON_GPU)
        self._heads_on_gpu: dict[str, HeadOnDevice] = {}
        self.cache: DeviceCache | None = None  # where `features` leaves a copy on the GPU
        self.gpu: GpuPipeline | None = None
        views = recipe.preprocess.view_count
        if recipe.device.type == "cuda" or recipe.decode not in ON_CPU:
            with self._on_the_gpu(), one_thread():
                if views == 1:
                    self._heads_on_gpu = {
                        name: HeadOnDevice(head, recipe.device) for name, head in self._heads.items()
                    }
                size, side = recipe.batch_size, recipe.preprocess.crop
                self.gpu = GpuPipeline(self._compute_on_gpu, batch_size=size, side=side, device=recipe.device)

    @property
    def outputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What comes out per image: name -> shape and dtype."""
        if self._heads:
            return {name: ((len(head.classes),), "float64") for name, head in self._heads.items()}
        return {spec.name: (spec.shape, spec.dtype) for spec in self.specs}

    def _load(self, progress: Progress | None) -> None:
        recipe = self.recipe
        loaded: LoadedNetwork = load_network(recipe.backbone.name, recipe.weights, progress)
        self.weights_sha256 = loaded.sha256
        if recipe.reduction is not None:
            recipe.reduction.refuse_other_features(recipe.to_dict(loaded.sha256))
        network = loaded.capture(recipe.layers)
        network.to(recipe.device, self._type).to(memory_format=torch.channels_last)
        self._network: fx.GraphModule = network.eval()
        if recipe.device.type == "cpu" and not recipe.plain:
            fill_vectors(self._network)
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

        Args:
            pixels: (B, 3, V * S, S), the V views of an image one below the other; B up to the recipe's batch size, on
                a GPU exactly that.

        Raises:
            FeatxError: a layer came out NaN or infinite, or does not fit into float16.
        """
        with one_thread():
            if self.recipe.preprocess.view_count > 1:
                return self._of_views(pixels)
            if self.gpu is None:
                return self._compute_on_cpu(pixels)
            with self._on_the_gpu(), self.gpu.features(lambda: (pixels, None)) as found:
                return {name: values.copy() for name, values in self._checked(found).items()}

    @functools.cached_property
    def partial_blocks_agree(self) -> bool:
        """Whether an image's features have the same bits in a block of any size, as in a full one.

        Tried with random pixels in blocks of a few sizes. Where it does not hold, small blocks must be padded.
        """
        if self.gpu is not None:
            return False
        size, shape = self.recipe.batch_size, self.recipe.preprocess.shape
        pixels = np.random.default_rng(1).integers(0, 256, (size, *shape, 3), np.uint8).transpose(0, 3, 1, 2)
        full = self(pixels)
        for count in _TRIED_SIZES:
            if count < size:
                found = self(pixels[-count:])
                if not all(np.array_equal(full[name][-count:], found[name]) for name in full):
                    return False
        return True

    def claim_decoder(self) -> bool:
        """Whether the GPU is to decode the JPEGs of a block: with `--decode auto` if it has nothing else to do.

        Who has claimed it brings the block to `features`.
        """
        if self._decoder is None:
            return False
        return self.recipe.decode == "gpu" or self._free_decoders.acquire(blocking=False)

    @contextlib.contextmanager
    def features(self, block: Block, reader: BlockDecoder) -> Iterator[Arrays]:
        """As a call with the block's pixels, for arrays that need not live longer than the `with` statement.

        To be called from threads that compute on one thread (`runtime.threads.compute_on_one_thread`). What the
        block has kept encoded is decoded here; if the GPU refuses it, by Pillow after all.
        """
        if self.recipe.preprocess.view_count > 1:
            yield self._of_views(block.pixels)
            return
        if self.gpu is None:
            yield self._compute_on_cpu(block.pixels)
            return
        keep = None
        if self.cache is not None:
            keep = functools.partial(self.cache.put, block.first, len(block.status))
        with self._on_the_gpu(), self.gpu.features(lambda: self._pixels_of(block, reader), keep) as found:
            yield self._checked(found)

    def _of_views(self, pixels: npt.NDArray[np.uint8]) -> Arrays:
        """As `features`, of pixels that hold several views of each image."""
        found = pool_views(self._of_one_view, pixels, self.recipe.preprocess.aggregate)
        if self._project:
            on = {name: torch.from_numpy(values).to(self.recipe.device) for name, values in found.items()}
            found = {name: values.cpu().numpy() for name, values in self._projected(on).items()}
        return self._scored({name: v.astype(self.recipe.dtype, copy=False) for name, v in found.items()})

    def _scored(self, features: Arrays) -> Arrays:
        return {name: head.scores(features[head.layer]) for name, head in self._heads.items()} or features

    def _of_one_view(self, pixels: npt.NDArray[np.uint8]) -> Arrays:
        """{layer: (B, ...)} in float32, which may be kept."""
        if self.gpu is None:
            with torch.inference_mode():
                found = self._pooled(self._pixels(pixels))
                return {name: np.array(self._finish(name, values)) for name, values in found.items()}
        with self._on_the_gpu(), self.gpu.features(lambda: (pixels, None)) as made:
            return {name: values.copy() for name, values in self._checked(made).items()}

    def _pixels_of(self, block: Block, reader: BlockDecoder) -> Uploads:
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
        """Free the network, and the GPU's memory and what is pinned for it; nothing can be computed any more."""
        if self.gpu is not None:
            self.gpu.close()
        self.gpu, self._network = None, fx.GraphModule({}, fx.Graph())
        gc.collect()  # traced networks refer to themselves
        if self.recipe.device.type == "cuda":
            torch.cuda.empty_cache()

    def _compute_on_cpu(self, pixels: npt.NDArray[np.uint8]) -> Arrays:
        with torch.inference_mode():
            found = self._pooled(self._pixels(pixels))
            return self._scored({name: self._finish(name, values) for name, values in found.items()})

    def _pooled(self, images: Tensor) -> dict[str, Tensor]:
        activations: dict[str, Tensor] = self._network(images)
        pool = self.recipe.pooling
        found = {name: pool(values.float(), self._layouts[name]) for name, values in activations.items()}
        # Of several views it is what is kept of them that is projected.
        return self._projected(found) if self.recipe.preprocess.view_count == 1 else found

    def _projected(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._project[name](values) for name, values in layers.items()} if self._project else layers

    def pool(self, name: str, values: npt.NDArray[Any], pooling: Pooling) -> npt.NDArray[Any]:
        """What this engine would give for a layer with another pooling, with the same bits, of what it gave without.

        Args:
            values: (B, ...) of the layer, not pooled.
        """
        tensor, layout = torch.from_numpy(values), self._layouts[name]
        if layout == MAP and tensor.ndim == 4:  # as it lies in memory while it is computed: sums follow that order
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return pooling(tensor, layout).contiguous().numpy()

    def _finish(self, name: str, features: Tensor) -> npt.NDArray[Any]:
        least, greatest = (float(v) for v in torch.aminmax(features))
        self._refuse_extremes(name, least, greatest)
        return self._as_stored(features).numpy()

    def _as_stored(self, features: Tensor) -> Tensor:
        # Of several views the mean is rounded, not what it is made of.
        half = self.recipe.dtype == "float16" and self.recipe.preprocess.view_count == 1
        return (features.half() if half else features).contiguous()

    def _compute_on_gpu(self, images: Tensor) -> dict[str, Tensor]:
        """(rows, S, S, 3) uint8 -> layers, and their extremes (rows, L, 2); nothing in it waits for the device.

        The precision is set for the whole process: one thread at a time, which the pipeline sees to.
        """
        with strict_precision(self.recipe.precision):
            found = self._pooled(self._pixels.on_gpu(images))
        ends = [torch.stack(torch.aminmax(values.flatten(1), dim=1), 1) for values in found.values()]
        outputs = {name: self._as_stored(values) for name, values in found.items()}
        if self._heads_on_gpu:
            outputs = {name: head(outputs[self._heads[name].layer]) for name, head in self._heads_on_gpu.items()}
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
        device = self.recipe.device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext(), torch.inference_mode():
            yield
