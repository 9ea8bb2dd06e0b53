"""The handlers of every contender: they count jobs, or record start times, in shared memory.

The worker of a contender is a separate process, which may have child processes and threads. The
handlers therefore write into a memory-mapped file: for each process a counter and the time of its
first job, and in the latency measurements one time for each job. Only reading the clock may need a
system call.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from functools import cache
from pathlib import Path

ENVIRONMENT = "PROLETARIAN_BENCH_MARKS"
SLOTS = 1024
STAMPS = 20_000
WORD = 8


class Marks:
    """Counters and time stamps in a memory-mapped file."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        size = WORD * (2 * SLOTS + STAMPS)
        if not path.exists() or path.stat().st_size != size:
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        view = memoryview(self._map)
        self._counts = view[: WORD * SLOTS].cast("Q")
        self._firsts = view[WORD * SLOTS : WORD * 2 * SLOTS].cast("d")
        self._stamps = view[WORD * 2 * SLOTS :].cast("d")
        self._slot: int | None = None
        self._lock = threading.Lock()

    def count(self) -> None:
        """Count one job in the slot of this process."""
        with self._lock:
            if self._slot is None:
                self._slot = os.getpid() % SLOTS
                self._firsts[self._slot] = time.monotonic()
            self._counts[self._slot] += 1

    def stamp(self, index: int) -> None:
        """Record the first start of job ``index``."""
        if not self._stamps[index]:
            self._stamps[index] = time.time()
        self.count()

    @property
    def total(self) -> int:
        """The number of jobs counted so far."""
        return sum(self._counts)

    @property
    def first(self) -> float:
        """The time when the first job was counted, as ``time.monotonic``."""
        return min((first for first in self._firsts if first), default=0.0)

    def stamps(self, count: int) -> list[float]:
        """Return the start times of the first ``count`` jobs; 0.0 for a job that did not start."""
        return list(self._stamps[:count])

    def reset(self) -> None:
        """Reset all counters and times."""
        self._map[:] = bytes(len(self._map))


@cache
def marks() -> Marks:
    """Return the marks of this worker process, in the file that the harness passed."""
    return Marks(os.environ[ENVIRONMENT])


def noop(i: int) -> None:
    """Handle a job that does nothing."""
    marks().count()


def stamp(i: int) -> None:
    """Handle a job that records its start."""
    marks().stamp(i)
