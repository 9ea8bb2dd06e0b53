"""Starts the workers of a contender as separate processes and measures their progress.

The rule for throughput is the same for all: the clock starts when the first handler starts, so that
imports and connecting do not count. It stops when the contender's own tables have no unfinished
job. The tables are queried only after the handlers have counted the last job. If the time is up
before that, the jobs that the tables show as finished are counted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg

from .contender import Contender, FailedError, Settings
from .marks import ENVIRONMENT, Marks
from .server import Server

POLL = 0.002
PATIENCE = 30.0


class Workers:
    """The worker processes of one contender, as a context manager that kills them at the end."""

    def __init__(
        self,
        contender: Contender,
        server: Server,
        marks_path: Path,
        *,
        settings: Settings,
        processes: int = 1,
    ) -> None:
        self._contender = contender
        self._server = server
        self.own_transactions = 0
        """How many of the transactions that the server counted are our own queries."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self.marks = Marks(marks_path)
        self.marks.reset()
        command = [sys.executable, "-m", "tests.benchmarks.worker"]
        command += [f"{type(contender).__module__}:{type(contender).__qualname__}"]
        command += [contender.dsn, json.dumps(asdict(settings))]
        self._processes = [
            subprocess.Popen(
                command,
                env={**os.environ, ENVIRONMENT: str(marks_path)},
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
            for _ in range(processes)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._log.close()
        self._server.evict(self._contender.database)

    def wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``done`` returns true; return whether it did before the timeout.

        :raises FailedError: if a worker process has exited.
        """
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() > end:
                return False
            for process in self._processes:
                if process.poll() is not None:
                    raise FailedError(f"the worker exited: {self._last_log_line()}")
            time.sleep(POLL)
        return True

    def wait_first(self) -> float:
        """Wait for the first job and return its start, as ``time.monotonic``."""
        if not self.wait(lambda: self.marks.total > 0, PATIENCE):
            raise FailedError(f"no job started in {PATIENCE:.0f} s")
        return self.marks.first

    def rate(self, n: int, seconds: float) -> tuple[float, int]:
        """Return jobs per second, from the first start to the last durable end or the timeout.

        :return: the rate and the number of finished jobs.
        """
        self.own_transactions = 0
        unfinished, when = n, 0.0
        with psycopg.connect(self._contender.dsn, autocommit=True) as connection:

            def all_finished() -> bool:
                nonlocal unfinished, when
                self.own_transactions += 1
                # The clock is read before the query, so that a slow query does not count against
                # the contender. A slow query is also repeated less often.
                when = time.monotonic()
                row = connection.execute(self._contender.unfinished.encode()).fetchone()
                unfinished = int(row[0]) if row else 0
                if unfinished:
                    time.sleep(time.monotonic() - when)
                return not unfinished

            first = self.wait_first()
            all_started = self.wait(lambda: self.marks.total >= n, seconds)
            if not all_started or not self.wait(all_finished, seconds):
                all_finished()
        if unfinished >= n:
            raise FailedError(f"no job finished in {seconds:.0f} s")
        return (n - unfinished) / (when - first), n - unfinished

    def handled_rate(self, n: int, seconds: float) -> float:
        """Return jobs per second by the handlers' count, for a queue that does not become empty."""
        first = self.wait_first()
        self.wait(lambda: self.marks.total >= n, seconds)
        now = time.monotonic()
        return min(self.marks.total, n) / (now - first)

    def _tree(self) -> list[psutil.Process]:
        parents = [psutil.Process(process.pid) for process in self._processes]
        return parents + [child for parent in parents for child in parent.children(recursive=True)]

    def cpu(self) -> float:
        """Return the CPU time of the workers in seconds."""
        return sum(_cpu(process) for process in self._tree())

    def peak_memory(self) -> float:
        """Return the sum of the peak resident sizes of all worker processes, in MiB."""
        return sum(_peak(process) for process in self._tree()) / 1024

    def _last_log_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "no output"


def _cpu(process: psutil.Process) -> float:
    """Return a process's CPU time in seconds, with nanoseconds where the system has them."""
    try:
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except OSError:
        times = process.cpu_times()
        return float(times.user + times.system)


def _peak(process: psutil.Process) -> float:
    """Return a process's peak resident size in KiB, or the current size if there is no peak."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return float(process.memory_info().rss / 1024)
    for line in status.splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1])
    return float(process.memory_info().rss / 1024)
