"""Worker processes in lease mode that tests can freeze, kill and stop."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest
from sqlalchemy import URL

from tests.forked import Forked

from . import leased_program
from .support import eventually

every_program = pytest.mark.parametrize("kind", ["threads", "psycopg", "asyncpg"])


class Program:
    """A worker process and the events it has printed."""

    def __init__(self, url: URL, kind: str, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self._output = directory / f"output-{uuid4().hex}"
        os.mkfifo(self._output)
        target = url.render_as_string(hide_password=False)
        self.process = Forked(
            leased_program.main, target, kind, str(directory), *arguments, output=self._output
        )
        self.told: list[str] = []
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._output.open() as lines:
            self.told.extend(line.strip() for line in lines)

    def until(self, event: str, times: int = 1) -> None:
        """Wait until the process has printed an event."""
        eventually(
            lambda: self.told.count(event) >= times or self.process.poll() is not None,
            about=self.told,
        )
        assert self.process.poll() is None, self.told

    def go(self) -> None:
        """Let the handlers of the process continue."""
        (self.directory / "go").touch()

    def end(self) -> int:
        """Stop the process with SIGTERM, as a deployment does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until the process has ended; return its exit code."""
        code = self.process.wait(20)
        self._reader.join(5)
        return code

    def effects(self) -> Counter[str]:
        """Return the number of each effect outside the database."""
        file = self.directory / "effects"
        return Counter(file.read_text().split() if file.exists() else [])


@contextmanager
def program(url: URL, kind: str, directory: Path, *arguments: str) -> Iterator[Program]:
    """Start a worker process, and kill it at the end of the block."""
    running = Program(url, kind, directory, *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.wait()
