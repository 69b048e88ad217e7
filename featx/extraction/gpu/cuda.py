"""A network on a GPU, with several blocks under way at once.

Every block has a slot: pinned memory, memory on the device, a stream of its own. Its pixels are copied up, the
network computes, its features are copied down, all queued without waiting; only the worker that brought it waits for
the end of it, and meanwhile the others decode, queue and store theirs. The network itself runs on one stream, block
after block, as a CUDA graph: one call instead of a hundred, each of which would have to wait for Python's lock.

The network's and the slots' memory is taken at the start: there is either too little from the beginning or never.
Then the network runs a block in halves, quarters, ..., which changes nothing but the rounding, and the file says so.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.errors import OutOfMemory
from featx.runtime.device import is_out_of_memory

SLOT_BYTES = 4 << 30  # of all slots together, on the device and once more as pinned memory
_WARM_UP = 3  # runs before a graph is recorded: libraries choose and allocate what they need in the first
# For pipelines to come: cuBLAS keeps 32 MB for every stream it was ever used on.
_IDLE_STREAMS: dict[torch.device, list[Any]] = {}
Outputs = dict[str, Tensor]
Compute = Callable[[Tensor], Outputs]


class GpuPipeline:
    """Blocks of pixels -> what `compute` makes of them, for several threads.

    Attributes:
        rows: images that go through the network at once; less than the batch size where memory is short.
        is_graph: the network runs as a CUDA graph.
    """

    def __init__(
        self, compute: Compute, *, batch_size: int, side: int, device: torch.device, slots: int | None = None
    ) -> None:
        """Take all the memory that is needed, and record the network.

        Args:
            compute: (rows, S, S, 3) uint8 on the device -> tensors of `rows` rows each.
            slots: blocks under way at once; by default as many as `SLOT_BYTES` hold, two at least, 16 at most.

        Raises:
            OutOfMemory: not even one image fits.
        """
        self._compute, self._batch, self._side, self._device = compute, batch_size, side, device
        self._api = _api(device)
        self._where = _indexed(device)
        try:
            self._stream = _IDLE_STREAMS.setdefault(self._where, []).pop()
        except IndexError:
            self._stream = _stream(device)
        self._lock = threading.Lock()
        self.rows = batch_size
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Outputs | None = None
        self._slots: queue.Queue[_Slot] = queue.Queue()
        self._closed = False
        try:
            while not self._settle(slots):
                self.rows = -(-self.rows // 2)
        except BaseException:
            self.close()
            raise
        self._api.synchronize(device)  # what the slots were made of may have been somebody else's a moment ago

    def _settle(self, slots: int | None) -> bool:
        """Take the memory; False if the network with `rows` leaves too little for one slot."""
        shapes = self._fit()
        self.is_graph = self._record()
        try:
            self._make_slots(shapes, slots)
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if self.rows == 1:
                raise self._out_of_memory("not even one block's features fit", error) from error
        self._graph = self._output = None
        shapes.clear()
        torch.cuda.empty_cache()
        return False

    def _make_slots(self, shapes: Outputs, most: int | None) -> None:
        if most is None:
            block_bytes = sum(values.nbytes // self.rows for values in shapes.values()) * self._batch
            most = max(2, min(16, SLOT_BYTES // (block_bytes + self._batch * self._side**2 * 3)))
        for _ in range(most):
            try:
                self._slots.put(_Slot(self._batch, self._side, shapes, self._device))
            except RuntimeError as error:
                if self._slots.empty() or not is_out_of_memory(error):
                    raise
                break

    def close(self) -> None:
        """Free the memory, and leave the stream to the next pipeline."""
        self._graph = self._output = None
        self._slots = queue.Queue()
        if not self._closed:
            _IDLE_STREAMS[self._where].append(self._stream)
        self._closed = True

    def _out_of_memory(self, what: str, error: Exception) -> OutOfMemory:
        return OutOfMemory(
            f"{what} into the memory of {self._device}: {str(error).splitlines()[0]} Ask for fewer or later layers, "
            f"--pool avg, a smaller --batch-size or --crop, or --device cpu"
        )

    def _fit(self) -> Outputs:
        """The first runs, with as many rows as there is memory for; what they give."""
        while True:
            try:
                self._input = torch.zeros(
                    self.rows, self._side, self._side, 3, dtype=torch.uint8, device=self._device
                )
                self._stream.wait_stream(self._api.current_stream(self._device))
                with self._api.stream(self._stream):
                    for _ in range(_WARM_UP):
                        found = self._compute(self._input)
                self._api.synchronize(self._device)
                return found
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.rows == 1:
                    raise self._out_of_memory("not even one image fits", error) from error
            found = {}  # of the run before the one that failed: it must not be in the way of the next
            torch.cuda.empty_cache()
            self.rows = -(-self.rows // 2)

    def _record(self) -> bool:
        """Record the network as a CUDA graph; False where it waits for the device half-way and so cannot be one."""
        if self._device.type != "cuda":
            return False
        graph = torch.cuda.CUDAGraph()
        # The first `with`: a capture that fails does not always give back the stream it has entered. A RuntimeError
        # is CUDA's word for a failed one, and for a graph's memory that is short.
        with self._api.stream(self._stream), contextlib.suppress(RuntimeError):
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._output = self._compute(self._input)
            self._graph = graph
        del graph
        if self._graph is None:
            torch.cuda.synchronize(self._device)
            with contextlib.suppress(RuntimeError):  # some versions count a failed capture as one under way
                torch.cuda.empty_cache()
        return self._graph is not None

    def _run(self) -> Outputs:
        """What the network makes of `_input`; queued on the network's stream."""
        if self._graph is None or self._output is None:
            return self._compute(self._input)
        self._graph.replay()
        return self._output

    @contextlib.contextmanager
    def features(
        self,
        prepare: Callable[[], tuple[npt.NDArray[np.uint8], tuple[Tensor, Tensor] | None]],
        keep: Callable[[Outputs], None] | None = None,
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """The outputs for a block, as arrays that are overwritten after the `with` statement.

        Args:
            prepare: called with the slot's stream as the current one; gives pixels (B, 3, S, S) uint8, channels last
                in memory, and, of those that were made on the device, places (n,) and pixels (n, 3, S, S), or None.
            keep: gets the outputs on the device, to copy from them on the current stream.
        """
        slot = self._slots.get()
        try:
            with self._api.stream(slot.stream):
                pixels, made_here = prepare()
                slot.pinned.copy_(torch.from_numpy(pixels.transpose(0, 2, 3, 1)))
                slot.pixels.copy_(slot.pinned, non_blocking=True)
                if made_here is not None:
                    slot.pixels[made_here[0]] = made_here[1].permute(0, 2, 3, 1)
                slot.uploaded.record()
            with self._lock, self._api.stream(self._stream):
                self._stream.wait_event(slot.uploaded)
                self._go_through(slot)
                slot.computed.record()
            with self._api.stream(slot.stream):
                slot.stream.wait_event(slot.computed)
                if keep is not None:
                    keep(slot.results)
                for name, values in slot.results.items():
                    slot.downloads[name].copy_(values, non_blocking=True)
                slot.downloaded.record()
            slot.downloaded.synchronize()
            yield {name: values.numpy() for name, values in slot.downloads.items()}
        finally:
            self._slots.put(slot)

    def _go_through(self, slot: _Slot) -> None:
        for start in range(0, self._batch, self.rows):
            part = slice(start, min(start + self.rows, self._batch))
            count = part.stop - part.start
            self._input[:count].copy_(slot.pixels[part])
            for name, values in self._run().items():
                slot.results[name][part].copy_(values[:count])


class _Slot:
    """The memory and the stream of one block on its way."""

    def __init__(self, batch: int, side: int, like: Outputs, device: torch.device) -> None:
        self.stream = _stream(device)
        pin = device.type == "cuda"
        self.pinned = torch.empty(batch, side, side, 3, dtype=torch.uint8, pin_memory=pin)
        self.pixels = torch.empty(batch, side, side, 3, dtype=torch.uint8, device=device)
        self.results = {
            name: torch.empty(batch, *values.shape[1:], dtype=values.dtype, device=device)
            for name, values in like.items()
        }
        self.downloads = {
            name: torch.empty(values.shape, dtype=values.dtype, pin_memory=pin)
            for name, values in self.results.items()
        }
        # Waiting for `downloaded` must not keep a core busy that could decode.
        self.uploaded, self.computed, self.downloaded = _event(device), _event(device), _event(device, blocking=True)


def _api(device: torch.device) -> Any:
    """Streams, events and waiting: CUDA's, or a CPU's that does everything at once, for the tests."""
    return torch.cuda if device.type == "cuda" else torch.cpu


def _indexed(device: torch.device) -> torch.device:
    """The device that "cuda" stands for now."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device) if device.type == "cuda" else torch.cpu.Stream()  # type: ignore[no-untyped-call]  # torch's own


def _event(device: torch.device, *, blocking: bool = False) -> Any:
    return torch.cuda.Event(blocking=blocking) if device.type == "cuda" else torch.cpu.Event()  # type: ignore[no-untyped-call]  # torch's own
