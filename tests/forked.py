"""Programs in processes of their own, forked by a process that has imported what they need.

Forking saves the second of processor time that a new interpreter would take for its imports.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_context = get_context("forkserver")
_context.set_forkserver_preload(
    [
        *(f"tests.integration.{name}_program" for name in ("batch", "leased", "limits")),
        "tests.faults.program",
    ]
)


class Forked:
    """A process, with the interface of ``subprocess.Popen``.

    :param main: a function that can be imported, which receives the arguments.
    :param output: a file or a named pipe for what the process prints.
    """

    def __init__(
        self, main: Callable[..., None], *arguments: Any, output: Path | None = None
    ) -> None:
        self._process = _context.Process(target=_run, args=(main, arguments, output))
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process exits; return its exit code."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the process unless it has exited."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(main: Callable[..., None], arguments: tuple[Any, ...], output: Path | None) -> None:
    os.setsid()  # Ctrl-C in a terminal interrupts the tests and not what they run
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
    faulthandler.enable()
    try:
        main(*arguments)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def forked(main: Callable[..., None], *arguments: Any) -> Iterator[Forked]:
    """Run a function in a process, and kill it at the end of the block, even if it is frozen."""
    process = Forked(main, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)
