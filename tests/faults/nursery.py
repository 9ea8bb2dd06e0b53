"""Where worker processes come from: a process that has imported everything, and forks.

So a start takes no second of processor time, of which these tests have few.
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
    """A process that the nursery has started; it is treated as one of ``subprocess`` is."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit code."""
        deadline = None if timeout is None else monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
            sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks, as the tests see it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._questions, self._answers = process.stdin, process.stdout

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have something done there, and return the answer."""
        self._questions.write(json.dumps([what, *arguments]) + "\n")
        self._questions.flush()
        return json.loads(self._answers.readline())

    def start(self, arguments: Sequence[str], log: Path) -> Worker:
        """Start a worker's program."""
        return Worker(self, self.ask("start", list(arguments), str(log)))


@contextmanager
def nursery() -> Iterator[Nursery]:
    """Yield a nursery; it ends with the block, or with this process."""
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
    """Do as the tests say, until they hang up."""
    for question in sys.stdin:
        what, *arguments = json.loads(question)
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
    """Run the program as the interpreter would."""
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
