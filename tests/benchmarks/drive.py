"""Starts the workers of a contender as processes of their own, and watches how far they are.

The rule for throughput, the same for all: the clock starts when the first handler starts (so
imports and connecting are left out) and stops when the contender's own tables show no unfinished
job. Only when the handlers have counted the last job do we begin to ask the tables. A contender
that is not through when the time is up is given the jobs that its tables show as finished by then.
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
    """The worker processes of one contender: a context manager that ends them all."""

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
        self.asked = 0
        """How many questions of ours the counters of the database contain."""
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
        """Wait until something is so; False when the time is up.

        :raises FailedError: if a worker process has ended.
        """
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() > end:
                return False
            for process in self._processes:
                if process.poll() is not None:
                    raise FailedError(f"the worker ended: {self._last_words()}")
            time.sleep(POLL)
        return True

    def wait_first(self) -> float:
        """When the first job started, as ``time.monotonic``."""
        if not self.wait(lambda: self.marks.total > 0, PATIENCE):
            raise FailedError(f"no job started in {PATIENCE:.0f} s")
        return self.marks.first

    def rate(self, n: int, seconds: float) -> tuple[float, int]:
        """Jobs per second, from the first start to the last durable end or the end of the time.

        :return: the rate, and how many jobs ended.
        """
        self.asked = 0
        left, when = n, 0.0
        with psycopg.connect(self._contender.dsn, autocommit=True) as connection:

            def through() -> bool:
                nonlocal left, when
                self.asked += 1
                # The answer is of the moment of the question: a slow one is held against no one,
                # and is asked less often.
                when = time.monotonic()
                row = connection.execute(self._contender.unfinished.encode()).fetchone()
                left = int(row[0]) if row else 0
                if left:
                    time.sleep(time.monotonic() - when)
                return not left

            first = self.wait_first()
            all_started = self.wait(lambda: self.marks.total >= n, seconds)
            if not all_started or not self.wait(through, seconds):
                through()
        if left >= n:
            raise FailedError(f"no job ended in {seconds:.0f} s")
        return (n - left) / (when - first), n - left

    def handled_rate(self, n: int, seconds: float) -> float:
        """Jobs per second by the handlers' own count: where the queue does not become empty."""
        first = self.wait_first()
        self.wait(lambda: self.marks.total >= n, seconds)
        now = time.monotonic()
        return min(self.marks.total, n) / (now - first)

    def _tree(self) -> list[psutil.Process]:
        parents = [psutil.Process(process.pid) for process in self._processes]
        return parents + [child for parent in parents for child in parent.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of processor time that the workers have used."""
        return sum(_cpu(process) for process in self._tree())

    def peak_memory(self) -> float:
        """Highest resident size of all worker processes together, in MiB."""
        return sum(_peak(process) for process in self._tree()) / 1024

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "without a word"


def _cpu(process: psutil.Process) -> float:
    """Ask for a process's seconds of processor time, to the nanosecond where the system tells."""
    try:
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except OSError:
        times = process.cpu_times()
        return float(times.user + times.system)


def _peak(process: psutil.Process) -> float:
    """Ask for a process's highest resident size in KiB, or the present one where that is all."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return float(process.memory_info().rss / 1024)
    for line in status.splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1])
    return float(process.memory_info().rss / 1024)
