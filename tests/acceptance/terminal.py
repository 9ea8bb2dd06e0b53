"""A program on a pseudo-terminal: what it shows, and answers to its questions."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x1b\][^\x07]*\x07")


class Terminal:
    """The program and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.raw = ""
        self._descriptor = descriptor

    @property
    def text(self) -> str:
        """What was written, without escape sequences."""
        return _ESCAPE.sub("", self.raw).replace("\r\n", "\n")

    def wait_for(self, words: str, seconds: float = 20, *, since: int = 0) -> None:
        """Wait until words were written, behind a position in the text."""
        end = monotonic() + seconds
        while words not in self.text[since:]:
            assert monotonic() < end, self.text
            if not self._read(0.1):
                assert words in self.text[since:], self.text

    def write(self, text: str) -> None:
        """Type a text."""
        os.write(self._descriptor, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self, seconds: float = 20) -> int:
        """Wait until the program ends, and return its exit code."""
        end = monotonic() + seconds
        while self._read(0.1):
            assert monotonic() < end, self.text
        return self.process.wait(seconds)

    def _read(self, seconds: float) -> bool:
        """Read what is there; return False at the end of the output."""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return self.process.poll() is None
        try:
            found = os.read(self._descriptor, 65536)
        except OSError:  # Linux reports the end like this
            return False
        self.raw += found.decode(errors="replace")
        return bool(found)


@contextmanager
def on_terminal(
    arguments: list[str],
    *,
    columns: int = 80,
    lines: int = 40,
    cwd: Path | None = None,
    **variables: str,
) -> Iterator[Terminal]:
    """Start a program on a terminal, and kill it at the end of the context."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "CI")}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | variables
    process = subprocess.Popen(
        arguments,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)
