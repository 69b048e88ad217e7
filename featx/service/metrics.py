"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PLAIN = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters in a registry of their own: several services in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter("featx_requests", "Requests by path and status.", ["path", "status"], **own)
        self.images = Counter("featx_images", "Images by what became of them.", ["status"], **own)
        self.rejected = Counter("featx_rejected", "Requests refused: queue full, rate limit.", ["reason"], **own)
        for reason in ("queue", "rate"):  # from 0 on: Prometheus sees no increase in a number that begins at 1
            self.rejected.labels(reason)
        self.dropped = Counter("featx_dropped_images", "Images nobody waited for any more.", **own)
        self.restarts = Counter("featx_restarted_threads", "Computing threads that had to be started again.", **own)
        self.in_flight = Gauge("featx_requests_in_flight", "Requests being answered.", **own)
        self.batch = Histogram("featx_batch_images", "Images in a block.", buckets=(1, 2, 4, 8, 16, 32, 128), **own)
        self.seconds = Histogram(
            "featx_seconds", "Seconds: decode and network of a block, encode and total of a request.", ["stage"],
            buckets=_SECONDS, **own,
        )  # fmt: skip
        memory = Gauge("featx_resident_bytes", "Memory of the process.", **own)
        memory.set_function(lambda: psutil.Process().memory_info().rss)
        self._depth = Gauge("featx_queue_images", "Images that wait, by network.", ["network"], **own)
        self._ready = Gauge("featx_ready", "1 if the service takes requests.", **own)

    def watch(self, network: str, waiting: Callable[[], float]) -> None:
        """Show the length of a queue."""
        self._depth.labels(network).set_function(waiting)

    def forget_networks(self) -> None:
        """Show no queue any more."""
        self._depth.clear()

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Show whether the service is ready."""
        self._ready.set_function(lambda: float(ready()))

    def text(self, accept: str) -> tuple[bytes, str]:
        """All of them, in the form a scraper asks for, and its media type."""
        if "application/openmetrics-text" in accept:
            return generate_open_metrics(self.registry), OPEN_METRICS  # type: ignore[no-untyped-call]  # it has no types
        return bytes(generate_latest(self.registry)), PLAIN
