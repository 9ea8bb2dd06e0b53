"""Errors of observers do not reach what runs in their context managers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType


def shielded(
    make: Callable[[], AbstractContextManager[object]], report: Callable[[Exception], object]
) -> AbstractContextManager[None]:
    """Return a context manager that does what an observer's one does, without its errors.

    :param make: returns that of the observer.
    :param report: called with an error that is not the one of the block.
    """
    return _Shielded(make, report)


class _Shielded(AbstractContextManager[None]):
    """The context manager of one observer, whose errors do not reach the block."""

    def __init__(
        self,
        make: Callable[[], AbstractContextManager[object]],
        report: Callable[[Exception], object],
    ) -> None:
        self._make = make
        self._report = report
        self._manager: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        try:
            manager = self._make()
            manager.__enter__()
        except Exception as error:
            self._report(error)
        else:
            self._manager = manager

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._manager is None:
            return
        try:
            self._manager.__exit__(kind, error, trace)
        except Exception as raised:
            if raised is not error:
                self._report(raised)
