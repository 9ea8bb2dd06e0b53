"""SIGINT and SIGTERM as a request to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType


@contextmanager
def on_stop_signals(stop: Callable[[], object], *, again: Callable[[], bool]) -> Generator[None]:
    """Call ``stop`` at SIGINT and SIGTERM; a further one is a KeyboardInterrupt.

    Only the main thread hears signals: elsewhere this does nothing.

    :param again: tells whether the stop was asked for already.
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
