"""The process: its socket, its signals, and senders that take too long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import h11
import psutil
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from featx.errors import UsageError
from featx.options.serving import ServeConfig
from featx.runtime.report import Report
from featx.runtime.text import format_bytes
from featx.service.app import make_app
from featx.service.messages.problems import MEDIA_TYPE, problem_body
from featx.service.service import Service

_KEEP_ALIVE_S = 75  # between requests of one connection; longer than the usual proxy's
_MOST_CONNECTIONS = 1024


@dataclass(frozen=True)
class ServeReport(Report):
    """What is being served.

    Attributes:
        resident_bytes: memory of the process when everything is loaded.
    """

    url: str
    models: list[dict[str, Any]]
    resident_bytes: int

    def lines(self) -> list[str]:
        text = []
        for one in self.models:
            of = ", ".join(one.get("layers", {})) or f"{len(one['classes'])} classes"
            text.append(f"{one['kind']} {one['id']}: {of}")
        return [*text, f"{format_bytes(self.resident_bytes)} of memory; ready at {self.url}"]


def serve(config: ServeConfig, *, ready: Callable[[ServeReport], None]) -> None:
    """Serve until SIGTERM or SIGINT; then answer the requests in hand, for `config.grace` seconds at most.

    SIGHUP loads everything again. The access log, one JSON object a line, goes to standard error.

    Args:
        ready: is told what is served and where, once requests are taken.

    Raises:
        UsageError: the address cannot be had; what is to be loaded cannot be.
    """
    _log_to_standard_error()
    listening = _listen(config.host, config.port)
    with contextlib.closing(listening):
        service = Service(config)
        server = _Server(service, lambda: ready(_report(listening, service)))
        server.run([listening])
    service.models.close()


def _report(listening: socket.socket, service: Service) -> ServeReport:
    host, port = listening.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    return ServeReport(f"http://{host}:{port}", service.models.describe(), int(psutil.Process().memory_info().rss))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_MOST_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--host {host} --port {port}: {reason}") from error


def _log_to_standard_error() -> None:
    log = logging.getLogger("featx")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class _Server(uvicorn.Server):
    """uvicorn's, with signals of our own: it would end by the signal, and we end with status 0."""

    def __init__(self, service: Service, ready: Callable[[], None]) -> None:
        own = service.config
        super().__init__(
            uvicorn.Config(
                make_app(service),
                http=_protocol(own.read_timeout),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(own.grace)),
                limit_concurrency=_MOST_CONNECTIONS,
            )
        )
        self._service, self._tell = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, self._service.reload))
        yield

    def _stop(self) -> None:
        self._service.stopping = True
        self.force_exit = self.should_exit  # by a second signal
        self.should_exit = True


def _protocol(patience_s: float) -> type[H11Protocol]:
    """uvicorn's protocol that closes a connection whose request line and headers do not come in time."""

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            self._wait_for_headers()

        def data_received(self, data: bytes) -> None:
            if self._timer is None and not self._answering():
                self._wait_for_headers()
            super().data_received(data)

        def handle_events(self) -> None:
            super().handle_events()
            if self._answering():
                self._stop_waiting()

        def on_response_complete(self) -> None:
            self._stop_waiting()
            super().on_response_complete()
            # The rest of the body, or a part of the next request: it must come as well.
            if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
                self._wait_for_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "this is not a request in HTTP/1.1")

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait_for_headers(self) -> None:
            self._timer = self.loop.call_later(patience_s, self._give_up)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            if not self._answering() and not self.transport.is_closing():
                self._refuse(408, f"no whole request came within {patience_s:g} s")

        def _refuse(self, status: int, detail: str) -> None:
            body = problem_body(status, detail)
            headers = [("Content-Type", MEDIA_TYPE), ("Connection", "close"), ("Content-Length", str(len(body)))]
            with contextlib.suppress(h11.LocalProtocolError):  # in the middle of an answer
                self.transport.write(self.conn.send(h11.Response(status_code=status, headers=headers)) or b"")
                self.transport.write(self.conn.send(h11.Data(data=body)) or b"")
                self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
            self.transport.close()

    return Patient
