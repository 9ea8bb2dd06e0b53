"""Handling of SIGINT and SIGTERM as requests to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType


@contextmanager
def on_stop_signals(stop: Callable[[], object], *, again: Callable[[], bool]) -> Generator[None]:
    """Call ``stop`` at SIGINT or SIGTERM; raise KeyboardInterrupt at the next one.

    Only the main thread can handle signals: in other threads this does nothing.

    :param again: returns whether the stop was already requested.
    """
    if current_thread() is not main_thread():
        yield
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if again():
            raise KeyboardInterrupt
        stop()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
