"""A supervisor of processes that each run the same command.

It starts programs instead of forking, loads nothing of the user's program, and shares nothing with
its processes but a line (see :mod:`.link`). A process that ends, although nobody has requested it,
is started again.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Final

from .link import READY, REPLACE, STOP, VARIABLE
from .logs import logger
from .plan import ERROR, STOPPED
from .reload import INTERVAL, FileWatch

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds before a process is started again: the first, and the longest."""
_STABLE: Final = 10.0
"""A process that lived for so many seconds is started again at once."""
_LOOK: Final = 1.0
"""Seconds between two looks at the processes, whose ends are usually noticed at once."""
_AFTER_SIGNAL: Final = 0.25
"""Seconds from a signal until it is passed on. A service manager may send it to all processes: it
must be the first that they receive."""
_MORE_THAN_GRACE: Final = 15.0
"""Seconds after ``shutdown_timeout`` until a process that does not end is killed."""


@dataclass(eq=False)
class _Process:
    """One of the processes, and those that replace it."""

    number: int
    program: subprocess.Popen[bytes] | None = None
    line: socket.socket | None = None
    ready: bool = False
    """Whether its worker runs, so that it stops by itself."""
    replaced: bool = False
    """Whether it has asked to be replaced."""
    grace: float = 10.0
    started_at: float = 0.0
    start_at: float | None = 0.0
    """When it is to be started; None if it runs or has done its work."""
    kill_at: float | None = None
    deaths: int = 0
    """How often in a row it has died soon."""
    received: bytes = b""


class Supervisor:
    """Starts processes, restarts them, and passes signals on.

    :param command: the command of each process.
    :param processes: how many there are.
    :param watch: tells which files have changed, if they are restarted then.
    :param until_done: whether a process that ends with 0 has done its work.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        watch: FileWatch | None = None,
        until_done: bool = False,
    ) -> None:
        self._command = list(command)
        self._processes = [_Process(n) for n in range(processes)]
        self._watch = watch
        self._until_done = until_done
        self._next_look = 0.0
        self._signals: list[float] = []
        self._passed_on = 0
        self._was_ready = False
        self._broken: list[_Process] = []
        """With ``watch``: the processes that could not start, until a file changes."""
        self._code = STOPPED
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Run the processes until a signal has stopped them; return the exit code."""
        for process in self._processes[1:]:
            process.start_at = None  # not before the first one has found everything all right
        try:
            with self._noticing_signals():
                while not self._is_over():
                    self._start_due()
                    self._wait()
                    self._handle_signals()
                    self._handle_changes()
                    self._reap()
        finally:
            self._kill()
            self._selector.close()
        return self._code

    def _is_over(self) -> bool:
        if any(process.program for process in self._processes):
            return False
        has_ended = not any(process.start_at is not None for process in self._processes)
        return bool(self._signals) or (has_ended and not self._broken)

    # Starting.

    def _start_due(self) -> None:
        if self._signals:
            return
        now = monotonic()
        for process in self._processes:
            if process.start_at is not None and process.start_at <= now:
                self._start(process)

    def _start(self, process: _Process) -> None:
        ours, theirs = socket.socketpair()
        is_first = process.number == 0 and not self._was_ready
        value = f"{theirs.fileno()}:{'first' if is_first else 'later'}:{process.number}"
        with theirs:
            process.program = subprocess.Popen(  # noqa: S603 - the command of this process
                self._command,
                env=os.environ | {VARIABLE: value},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C reaches the supervisor alone, which passes it on.
                process_group=0,
            )
        ours.setblocking(False)  # noqa: FBT003 - positional only
        process.line = ours
        process.ready = process.replaced = False
        process.received = b""
        process.start_at = process.kill_at = None
        process.started_at = monotonic()
        self._selector.register(ours, selectors.EVENT_READ, process)

    # Waiting for what happens.

    def _wait(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            if isinstance(key.data, _Process):
                self._receive(key.data)
            else:
                with suppress(BlockingIOError):
                    key.data.recv(4096)

    def _patience(self) -> float:
        now = monotonic()
        times = [now + _LOOK]
        times += [t for p in self._processes for t in (p.start_at, p.kill_at) if t is not None]
        if self._watch is not None:
            times.append(self._next_look)
        if len(self._signals) > self._passed_on:
            times.append(self._signals[self._passed_on])
        return max(0.0, min(times) - now)

    def _receive(self, process: _Process) -> None:
        if process.line is None:
            return
        try:
            data = process.line.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(process)
            if process.program is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.program.wait(_LOOK)
            return
        *lines, process.received = (process.received + data).split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            if word == READY:
                self._is_ready(process, float(value))
            elif word == REPLACE:
                process.replaced = True
                process.kill_at = monotonic() + process.grace + _MORE_THAN_GRACE

    def _is_ready(self, process: _Process, grace: float) -> None:
        process.ready, process.grace = True, grace
        if not self._was_ready:
            self._was_ready = True
            for other in self._processes[1:]:
                other.start_at = monotonic()

    def _hang_up(self, process: _Process) -> None:
        if process.line is not None:
            self._selector.unregister(process.line)
            process.line.close()
            process.line = None

    # Ends.

    def _reap(self) -> None:
        for process in self._processes:
            program = process.program
            if program is None:
                continue
            code = program.poll()
            if code is not None:
                self._hang_up(process)
                process.program = None
                self._ended(process, program.pid, code)
            elif process.kill_at is not None and process.kill_at <= monotonic():
                logger.error("process %s does not stop: it is killed", program.pid)
                process.kill_at = None
                program.kill()

    def _ended(self, process: _Process, pid: int, code: int) -> None:
        """Decide what becomes of a process that has ended."""
        if self._signals:
            started = process.ready or code != -signal.SIGTERM
            if code != STOPPED and started:
                self._code = self._code or _exit_code(code)
            return
        if process.replaced or (self._watch is not None and process.kill_at is not None):
            process.start_at, process.deaths = monotonic(), 0
            return
        if self._until_done and code == STOPPED:
            return
        if self._watch is not None and code == ERROR:
            self._broken.append(process)
            logger.warning("process %s has ended; it is started when a .py file changes", pid)
            return
        if not self._was_ready and code > 0:  # the options or the program are wrong
            self._code = code
            return
        now = monotonic()
        process.deaths = 0 if now - process.started_at >= _STABLE else process.deaths + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (process.deaths - 1)) if process.deaths else 0
        process.start_at = now + pause
        logger.warning("process %s %s; it is started again in %g s", pid, _cause(code), pause)

    # Changes of files.

    def _handle_changes(self) -> None:
        if self._watch is None or self._signals or monotonic() < self._next_look:
            return
        changed = self._watch.changed()
        self._next_look = monotonic() + INTERVAL
        if not changed:
            return
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        logger.info("restarting: %s%s changed", changed[0], more)
        for process in self._processes:
            if process.program is not None:
                self._stop(process)
        while self._broken:
            self._broken.pop().start_at = monotonic()

    # Stopping.

    def _handle_signals(self) -> None:
        """Pass signals on: the first as a request, further ones as they are."""
        now = monotonic()
        while len(self._signals) > self._passed_on and self._signals[self._passed_on] <= now:
            for process in self._processes:
                process.start_at = None
                if process.program is None:
                    continue
                if self._passed_on == 0:
                    self._stop(process)
                else:
                    process.program.send_signal(signal.SIGTERM)
            self._passed_on += 1

    def _stop(self, process: _Process) -> None:
        """Tell a process to stop, and see to it that it does."""
        if process.kill_at is None:
            process.kill_at = monotonic() + process.grace + _MORE_THAN_GRACE
        if process.ready and process.line is not None:
            with suppress(OSError):
                process.line.send(STOP)
        elif process.program is not None:  # it still starts: a signal ends it
            process.program.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        for process in self._processes:
            self._hang_up(process)
            if process.program is not None:
                process.program.kill()
                process.program.wait()

    @contextmanager
    def _noticing_signals(self) -> Generator[None]:
        ours, theirs = socket.socketpair()

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._signals.append(monotonic() + _AFTER_SIGNAL)

        with ours, theirs:
            ours.setblocking(False)  # noqa: FBT003 - positional only
            theirs.setblocking(False)  # noqa: FBT003 - positional only
            self._selector.register(ours, selectors.EVENT_READ, ours)
            signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, on_signal)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)


def _exit_code(code: int) -> int:
    """Return the exit code for a process that has ended: of a signal as in a shell."""
    return 128 - code if code < 0 else code


def _cause(code: int) -> str:
    if code >= 0:
        return f"has ended with the exit code {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by the signal {-code}"


def this_command() -> list[str]:
    """Return the command of this process, with the options of the interpreter."""
    return [sys.executable, *sys.orig_argv[1:]]
