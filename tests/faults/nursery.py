"""A process that has imported all modules and forks the worker processes.

Forking saves the second of processor time that a new interpreter would take for its imports.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from .program import main

ROOT = Path(__file__).parents[2]


class Worker:
    """A process that the nursery has forked, with the interface of ``subprocess.Popen``."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process exits; return its exit code."""
        deadline = None if timeout is None else monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
            sleep(0.01)
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


class Nursery:
    """The tests' client of the forking process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._commands, self._answers = process.stdin, process.stdout

    def ask(self, what: str, *arguments: Any) -> Any:
        """Send a command to the forking process; return its answer."""
        self._commands.write(json.dumps([what, *arguments]) + "\n")
        self._commands.flush()
        return json.loads(self._answers.readline())

    def start(self, arguments: Sequence[str], log: Path) -> Worker:
        """Start the worker program."""
        return Worker(self, self.ask("start", list(arguments), str(log)))


@contextmanager
def nursery() -> Iterator[Nursery]:
    """Yield a nursery; its process ends with the block, or with this process."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.nursery"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield Nursery(process)


def serve() -> None:
    """Execute commands from standard input until it is closed."""
    for command in sys.stdin:
        what, *arguments = json.loads(command)
        answer = _start(*arguments) if what == "start" else _exit_code(*arguments)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _start(arguments: Sequence[str], log: str) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = _run(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


def _run(arguments: Sequence[str]) -> int:
    """Run the program as the interpreter would; return its exit code."""
    try:
        main(arguments)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else leaving.code is not None
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


if __name__ == "__main__":
    serve()
