"""An HTTP server for probes and for Prometheus, in threads of its own.

It is the one of the standard library: no dependency, and no event loop that a handler could block.
Slow clients take a thread for some seconds, and the oldest of them make room for others.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from selectors import EVENT_READ, DefaultSelector
from socketserver import TCPServer
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from ..worker.health import Health

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger: logging.Logger = logging.getLogger("sqlalchemy_proletarian")

Answer: TypeAlias = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""

_SILENCE: Final = 5.0
"""Seconds that a client may be silent."""

_DEADLINE: Final = 15.0
"""Seconds that a request may take. Prometheus waits for 10 by default."""

_MOST: Final = 32
"""How many requests are served at a time."""

_LOOK: Final = 1.0
"""Seconds between two looks for requests that take too long."""

_JSON: Final = {"Content-Type": "application/json"}

_NO_METRICS: Final = "metrics are not installed: pip install 'sqlalchemy-proletarian[prometheus]'\n"


class HealthServer:
    """Serves the health of one worker; see :func:`.serve`.

    :param look: returns the :class:`.Health` of the worker.
    :param host: the address to listen at.
    :param port: the TCP port; 0 for any that is free.
    :raises OSError: if it cannot listen.

    .. versionadded:: 0.1
    """

    def __init__(self, look: Callable[[], Health], host: str, port: int) -> None:
        self._look = look
        self._metrics: Callable[[Mapping[str, str], str], Answer] | None = None
        self._server = _listening(host, port, self._answer)
        self._thread = Thread(target=self._run, name="health", daemon=True)
        self._wake, self._woken = socket.socketpair()

    @property
    def host(self) -> str:
        """The address at which it listens."""
        return str(self._server.server_address[0])

    @property
    def port(self) -> int:
        """The TCP port at which it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The URL, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()

    def close(self) -> None:
        """End; requests that are being answered get their answers."""
        self._wake.close()
        if self._thread.ident is not None:
            self._thread.join()
        self._woken.close()
        self._server.server_close()

    def show_metrics(self, registry: CollectorRegistry | None) -> None:
        """Answer ``/metrics`` with the metrics of a registry.

        :param registry: a registry of :mod:`prometheus_client`; None for the one of the process.
        """
        from prometheus_client import REGISTRY, make_wsgi_app

        app = make_wsgi_app(REGISTRY if registry is None else registry)

        def metrics(headers: Mapping[str, str], query: str) -> Answer:
            started: list[Any] = []
            environment = {
                "REQUEST_METHOD": "GET",
                "PATH_INFO": "/metrics",
                "QUERY_STRING": query,
                "HTTP_ACCEPT": headers.get("Accept", ""),
                "HTTP_ACCEPT_ENCODING": headers.get("Accept-Encoding", ""),
            }
            body = b"".join(app(environment, lambda *values: started.extend(values)))
            status, given = started[:2]
            return int(status.split()[0]), dict(given), body

        self._metrics = metrics

    def _run(self) -> None:
        with DefaultSelector() as selector:
            selector.register(self._server, EVENT_READ)
            selector.register(self._woken, EVENT_READ, "end")
            while True:
                found = selector.select(_LOOK)
                if any(key.data for key, _ in found):
                    return
                if found:
                    self._server.handle_request()
                self._server.service_actions()

    def _answer(self, path: str, headers: Mapping[str, str]) -> Answer:
        path, _, query = path.partition("?")
        if path == "/metrics":
            if self._metrics is not None:
                return self._metrics(headers, query)
            plain = {"Content-Type": "text/plain; charset=utf-8"}
            return HTTPStatus.NOT_IMPLEMENTED, plain, _NO_METRICS.encode()
        if path not in {"/live", "/ready"}:
            body = {"error": "there are /live, /ready and /metrics"}
            return HTTPStatus.NOT_FOUND, _JSON, _encoded(body)
        health = self._look()
        is_well = health.live if path == "/live" else health.ready
        status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
        return status, _JSON, _encoded(_as_json(health))


def _as_json(health: Health) -> dict[str, Any]:
    return {field.name: _plain(getattr(health, field.name)) for field in fields(health)}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return round(value.total_seconds(), 3) if isinstance(value, timedelta) else value


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode() + b"\n"


def _listening(host: str, port: int, answer: Callable[[str, Mapping[str, str]], Answer]) -> _Server:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        return _Server(family, address, answer)
    except OSError as error:
        reason = error.strerror or str(error)
        msg = f"cannot serve health at {host}:{port}: {reason}; choose another port or host"
        raise OSError(error.errno, msg) from error


class _Server(ThreadingHTTPServer):
    """A server that ends requests which take too long."""

    daemon_threads = True
    request_queue_size = 64
    timeout = 0

    def __init__(
        self,
        family: socket.AddressFamily,
        address: Any,
        answer: Callable[[str, Mapping[str, str]], Answer],
    ) -> None:
        self.address_family = family
        self.answer = answer
        self._requests: dict[Any, float] = {}
        self._lock = Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, without the look-up of a host name, which may take long."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a request in a thread; if there are too many, the oldest one ends."""
        with self._lock:
            if len(self._requests) >= _MOST:
                _end(next(iter(self._requests)))
            self._requests[request] = monotonic() + _DEADLINE
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._requests.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End requests that have taken too long."""
        now = monotonic()
        with self._lock:
            for request, deadline in self._requests.items():
                if deadline < now:
                    _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log an error, but not that a client has gone or was too slow."""
        logger.debug("a request for health has failed: %r", sys.exc_info()[1])


def _end(request: Any) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    timeout = _SILENCE

    def do_GET(self) -> None:
        """Answer with a body."""
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        try:
            answer = cast("_Server", self.server).answer
            status, headers, body = answer(self.path, dict(self.headers.items()))
        except Exception:
            logger.exception("a request for health has failed: %s", self.path)
            status, headers, body = HTTPStatus.INTERNAL_SERVER_ERROR, {}, b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def version_string(self) -> str:
        """Return the name of the server, without versions."""
        return "proletarian"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes come every few seconds."""
