"""The line between a supervisor and each of its processes: a socket that each end reads.

The process tells that it is ready, or that it wants to be replaced. The supervisor tells it to
stop; so does the end of the line, which means that the supervisor is gone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from time import sleep
from typing import Final

VARIABLE: Final = "PROLETARIAN_SUPERVISOR"
"""The environment variable by which a process finds its end of the line."""

READY: Final = "ready"
REPLACE: Final = "replace"
STOP: Final = b"stop\n"

_AGAIN: Final = 0.05
"""Seconds between two requests to a worker that is starting."""


class Link:
    """The end of a process that is supervised.

    :param line: the socket.
    :param first: whether this process is the one that prints the banner.
    :param number: its place among the processes, from 0. One that replaces another has the same.
    """

    def __init__(self, line: socket.socket, *, first: bool, number: int = 0) -> None:
        self.first: bool = first
        self.number: int = number
        self._line = line

    @classmethod
    def inherited(cls) -> Link | None:
        """Return the link that the supervisor has given to this process, or None."""
        given = os.environ.pop(VARIABLE, None)  # programs that handlers start have none
        if given is None:
            return None
        line, first, number = given.split(":")
        os.set_inheritable(int(line), False)  # noqa: FBT003 - positional only
        return cls(socket.socket(fileno=int(line)), first=first == "first", number=int(number))

    def tell(self, *words: object) -> None:
        """Send a message to the supervisor, if it is there."""
        with suppress(OSError):
            self._line.sendall(f"{' '.join(map(str, words))}\n".encode())

    def watch(self, stop: Callable[[], object], is_stopping: Callable[[], bool]) -> None:
        """Call ``stop`` when the supervisor says so or is gone, until the worker is stopping."""

        def wait() -> None:
            with suppress(OSError):
                self._line.recv(len(STOP))
            while not is_stopping():  # it may be starting
                stop()
                sleep(_AGAIN)

        Thread(target=wait, name="supervisor", daemon=True).start()
