"""A proxy to the server that can cut a connection while a transaction commits."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Lock, Thread

from sqlalchemy import URL

COMMIT = re.compile(rb"COMMIT(;?\0|$)")
END = re.compile(rb"(COMMIT|ROLLBACK)(;?\0|$)")


@dataclass
class Trap:
    """A trap for the commit of a transaction.

    :param said: a part of the bytes sent in the transaction.
    :param forward: whether the server receives the commit.
    """

    said: bytes
    forward: bool
    caught: Event = field(default_factory=Event)
    """Set when the server has committed, or when the commit was held back."""
    released: Event = field(default_factory=Event)
    """Set by the test to cut the connection."""


class Proxy:
    """A proxy between workers and the server.

    :param url: the URL of the server, over TCP or a Unix socket of MySQL.
    """

    def __init__(self, url: URL) -> None:
        self._to = url
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = url.set(host="127.0.0.1", port=port).difference_update_query(["unix_socket"])
        self.swallows = False
        self._lock = Lock()
        self._trap: Trap | None = None
        self._sockets: list[socket.socket] = []
        Thread(target=self._accept, daemon=True).start()

    def set(self, said: bytes, *, forward: bool) -> Trap:
        """Set a trap."""
        trap = self._trap = Trap(said, forward)
        return trap

    def swallow(self) -> None:
        """Drop all data in both directions from now on, and keep every connection open."""
        self.swallows = True

    def close(self) -> None:
        """Cut all connections and stop listening."""
        for endpoint in [self._listener, *self._sockets]:
            _cut(endpoint)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                worker, _ = self._listener.accept()
                server = self._connect()
                self._sockets += [worker, server]
                ProxiedConnection(self, worker, server).start()

    def _connect(self) -> socket.socket:
        if path := self._to.query.get("unix_socket"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(path))
            return server
        return socket.create_connection((str(self._to.host), int(self._to.port or 0)))

    def take(self, said: bytes) -> Trap | None:
        """Return the trap if it matches ``said``, and remove it; otherwise return None."""
        with self._lock:
            trap = self._trap
            if trap is None or trap.said not in said:
                return None
            self._trap = None
            return trap


class ProxiedConnection:
    """One proxied connection."""

    def __init__(self, proxy: Proxy, worker: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._worker = worker
        self._server = server
        self._transaction = b""
        self._trap: Trap | None = None

    def start(self) -> None:
        """Forward data in both directions."""
        Thread(target=self._pass, args=(self._from_worker,), daemon=True).start()
        Thread(target=self._pass, args=(self._from_server,), daemon=True).start()

    def _pass(self, step: Callable[[], bool]) -> None:
        with suppress(OSError):
            while step():
                pass
        _cut(self._worker)
        _cut(self._server)

    def _from_worker(self) -> bool:
        said = self._worker.recv(65536)
        if self._proxy.swallows:
            return bool(said)
        self._transaction += said
        if COMMIT.search(said):
            self._trap = self._proxy.take(self._transaction)
            if self._trap is not None and not self._trap.forward:
                self._spring(self._trap)
                return False
        if END.search(said):
            self._transaction = b""
        self._server.sendall(said)
        return bool(said)

    def _from_server(self) -> bool:
        said = self._server.recv(65536)
        if self._proxy.swallows:
            return bool(said)
        if self._trap is not None:  # this is the answer to the commit
            self._spring(self._trap)
            return False
        self._worker.sendall(said)
        return bool(said)

    def _spring(self, trap: Trap) -> None:
        trap.caught.set()
        trap.released.wait(30)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def proxy(url: URL) -> Iterator[Proxy]:
    """Yield a proxy to the server at ``url``."""
    between = Proxy(url)
    try:
        yield between
    finally:
        between.close()
