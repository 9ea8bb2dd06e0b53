"""The runtime of a worker with threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from socket import socket
from threading import Event, Lock, Thread
from typing import Any

from .base import Flag, Runtime


class Threads:
    """Waits by blocking a thread."""

    def flag(self) -> Flag:
        """Return a flag; see :class:`.Runtime`."""
        return Event()

    def lock(self) -> AbstractContextManager[Any]:
        """Return a lock; see :class:`.Runtime`."""
        return Lock()

    def wait_readable(self, sock: socket, seconds: float) -> None:
        """Wait for a socket; see :class:`.Runtime`."""
        with DefaultSelector() as selector:
            selector.register(sock, EVENT_READ)
            selector.select(seconds)

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Run ``work`` in a daemon thread."""
        Thread(target=work, name=name, daemon=True).start()

    def spawn_isolated(self, work: Callable[[Runtime], object], name: str) -> None:
        """Run ``work`` in a thread; see :class:`.Runtime`."""
        self.spawn(partial(work, self), name)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call ``function`` at once; see :class:`.Runtime`."""
        function()

    def is_cancelled(self) -> bool:
        """Return False, because threads are not cancelled."""
        return False
