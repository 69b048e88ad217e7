"""A `featx serve` for tests: a process of its own, on a port of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import featx

NET = "alexnet-mini"
LAYERS = "conv5,fc7"


@dataclass
class Served:
    """A service that is up."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    about: dict[str, Any]

    @property
    def address(self) -> tuple[str, int]:
        parts = urllib.parse.urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    def ask(
        self, method: str, path: str, body: bytes | None = None, timeout: float = 60, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body; header names with underscores for dashes."""
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def image(self, path: str, content: bytes, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send one image."""
        return self.ask("POST", path, content, Content_Type="image/jpeg", **headers)

    def metric(self, name: str) -> float:
        """A number of /metrics, summed over its labels."""
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(log: Path, *words: str, net: str = NET, layers: str = LAYERS) -> Iterator[Served]:
    """A service until the end of the `with` statement."""
    command = [sys.executable, "-m", "featx", "serve", "-b", net, "-l", layers, "--port", "0", "--json", *words]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log.read_text()
    about = json.loads(line)
    try:
        yield Served(about["url"], process, log, about)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def expected(source: Path, out: Path, layers: str = LAYERS, pool: str = "none", net: str = NET) -> featx.Features:
    """What `featx extract` makes of a folder."""
    config = featx.ExtractConfig(backbone=net, layers=layers, pool=pool, device="cpu", max_bad=1.0)
    featx.extract_features(source, out, config)
    return featx.open_features(out)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """NaN rows included."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def form(contents: list[bytes], names: list[str] | None = None) -> tuple[bytes, str]:
    """A multipart form, made by hand."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in zip(names or map(str, range(len(contents))), contents, strict=True)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
