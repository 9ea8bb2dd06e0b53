"""What differs between a worker with threads and a worker in an event loop.

All other code of a worker is plain functions, written once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from socket import socket
from typing import Any, Final, Protocol, TypeAlias

GRACE_PERIOD: Final = 1.0
"""Seconds to wait for something that was asked to end, and may not, as when the server is gone."""


Work: TypeAlias = tuple[Callable[[], object], str]
"""A function that must not raise, and the name of the thread or task that runs it."""


class Flag(Protocol):
    """The interface of :class:`threading.Event`. Any thread may set it."""

    def set(self) -> None: ...  # noqa: D102
    def is_set(self) -> bool: ...  # noqa: D102
    def wait(self, timeout: float | None = None) -> bool: ...  # noqa: D102


class Runtime(Protocol):
    """How code waits, and how it runs concurrently: in threads, or in asyncio tasks."""

    def flag(self) -> Flag:
        """Return a flag that is not set."""
        ...

    def lock(self) -> AbstractContextManager[Any]:
        """Return a lock that may be held while waiting."""
        ...

    def wait_readable(self, sock: socket, seconds: float) -> None:
        """Wait until a socket has data to read, or was closed by the peer."""
        ...

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Run ``work`` concurrently with the caller.

        :param work: must not raise.
        :raises RuntimeError: if the system cannot start another thread.
        """
        ...

    def spawn_all(self, works: Iterable[Work]) -> None:
        """Run functions concurrently with the caller and with each other.

        One starts when the one before it has ended or waits. That takes less time than a thread or
        task for each of them, if they end at once.

        :raises RuntimeError: if the system cannot start a thread; then none of them runs.
        """
        ...

    def spawn_isolated(
        self,
        work: Callable[[Runtime], object],
        name: str,
        when_ended: Callable[[], object],
    ) -> None:
        """Run ``work`` where no other code of this runtime can block it.

        :param work: called with the runtime that it must use; must not raise.
        :param when_ended: called in any thread when ``work`` and its runtime have ended. The
            interpreter must not end earlier: it may crash if a thread then runs a greenlet.
        """
        ...

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call ``function`` in this runtime; called from code that runs isolated."""
        ...

    def is_cancelled(self) -> bool:
        """Return whether the caller, which was spawned here, must end at once."""
        ...
