"""A service at work: images through the networks within a deadline; readiness, reloading, shutting down."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from PIL import Image

from featx.options.serving import ServeConfig
from featx.service.access import Keys
from featx.service.batching import Overloaded, Row
from featx.service.loading import load_models
from featx.service.messages.bodies import Gone, Sent, images_of, read_body
from featx.service.messages.problems import Problem
from featx.service.metrics import Metrics
from featx.service.models import Models, Network

_PROBED_S = 10.0  # in which the probe's image must come back
_EXCHANGE_S = 1.0  # for requests that have chosen a network and not yet given it their images
_PROBE_KEPT_S = 1.0  # during which the answer of a probe is repeated
_log = logging.getLogger("featx.service")


class Service:
    """What the routes share.

    Attributes:
        models: exchanged as a whole by `reload`; a request keeps what it has begun with.
        stopping: set by SIGTERM: not ready any more.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.metrics, self.stopping = config, Metrics(), False
        self.keys = Keys.read(config.api_key_file, config.rate_limit)
        self.models: Models = load_models(config, self.metrics)
        self.metrics.watch_ready(lambda: not self.stopping)
        self._show_queues()
        self._probed: tuple[float, str | None] = (-math.inf, None)
        self._probe_lock = asyncio.Lock()
        self._reloading = threading.Lock()
        self._probe_image = _probe_image()

    def _show_queues(self) -> None:
        self.metrics.forget_networks()
        for network in self.models.networks.values():
            network.show(self.metrics)

    def fingerprint(self) -> str:
        """Of the first network: what an answer carries that is of no other."""
        return self.models.default.fingerprint

    async def images(self, request: Request) -> list[Sent]:
        """What a request has sent."""
        body = await read_body(request, most=self.config.max_body, idle_s=self.config.read_timeout)
        return await images_of(request, body)

    async def rows(self, request: Request, network: Network, images: Sequence[bytes]) -> list[Row]:
        """What a network makes of a request's images, in their order.

        Raises:
            Problem: 413, 429 or 504.
            Gone: the client has closed the connection; what of its images was not begun is dropped.
        """
        self.charge(request, len(images))
        try:
            futures = network.batcher.submit(images)
        except Overloaded as error:
            self._give_back(request, len(images))
            if len(images) > network.batcher.capacity:
                holds = f"the queue holds {network.batcher.capacity}"
                raise Problem(413, f"{len(images)} images at once are too many; {holds}") from None
            self.metrics.rejected.labels("queue").inc()
            raise Problem(429, f"{error}; try again later", headers={"Retry-After": "1"}) from None
        everything = asyncio.gather(*map(asyncio.wrap_future, futures))
        everything.add_done_callback(lambda done: done.cancelled() or done.exception())  # whether anybody asks or not
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            waited_for: set[asyncio.Future[Any]] = {everything, gone}
            await asyncio.wait(waited_for, timeout=self.config.deadline, return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                return list(everything.result())
            if gone.done():
                raise Gone
            raise Problem(504, f"not computed within {self.config.deadline:g} s (--deadline)")
        finally:
            gone.cancel()
            everything.cancel()

    def charge(self, request: Request, images: int) -> None:
        """Count images for a key; Problem 429 if it has had as many as it may."""
        request.scope["featx.images"] = images
        name = request.scope.get("featx.key")
        wait = self.keys.charge(name, images) if self.keys is not None and name is not None else 0.0
        if wait > 0:
            self.metrics.rejected.labels("rate").inc()
            raise Problem(
                429,
                f"more than {self.config.rate_limit} images in a minute",
                headers={"Retry-After": str(math.ceil(wait))},
            )

    def _give_back(self, request: Request, images: int) -> None:
        name = request.scope.get("featx.key")
        if self.keys is not None and name is not None:
            self.keys.give_back(name, images)

    async def why_not_ready(self) -> str | None:
        """None if an image goes through every network; else what is wrong."""
        if self.stopping:
            return "the service is shutting down"
        async with self._probe_lock:
            if time.monotonic() - self._probed[0] < _PROBE_KEPT_S:
                return self._probed[1]
            found = await self._probe()
            self._probed = time.monotonic(), found
        return found

    async def _probe(self) -> str | None:
        for network in self.models.networks.values():
            if network.batcher.restart_dead():
                return f"threads of {network.name} had ended and were started again"
            try:
                future = asyncio.wrap_future(network.batcher.submit([self._probe_image], first=True)[0])
                row = await asyncio.wait_for(future, _PROBED_S)
            except (TimeoutError, Overloaded):
                return f"{network.name} does not answer within {_PROBED_S:g} s"
            except Exception as error:
                return f"{network.name}: {error}"
            if not row.done:
                return f"{network.name}: {row.reason}"
        return None

    def reload(self) -> None:
        """Load everything again and exchange it; requests in hand end with what they have begun with.

        What cannot be loaded leaves everything as it was, and is said in the log.
        """
        with self._reloading:
            try:
                keys = Keys.read(self.config.api_key_file, self.config.rate_limit)
                loaded = load_models(self.config, self.metrics)
            except Exception as error:
                _log.error("featx: not loaded again, the service goes on as before: %s", error)
                return
            if keys is not None:
                keys.take_over(self.keys)
            before, self.models, self.keys = self.models, loaded, keys
            self._show_queues()
            time.sleep(_EXCHANGE_S)
            before.close()
            _log.warning("featx: loaded again: %s", ", ".join(one["id"] for one in loaded.describe()))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _probe_image() -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, "JPEG")
    return out.getvalue()
