"""Tracebacks that begin with the user's code, and not with the library's."""

from __future__ import annotations

from types import TracebackType
from typing import Final, TypeVar

ErrorT = TypeVar("ErrorT", bound=BaseException)

_PACKAGE: Final = f"{__name__.partition('.')[0]}."


def from_the_handler(error: ErrorT) -> ErrorT:
    """Return an error whose traceback begins where the library calls the user's code.

    If it was raised in the library itself, the traceback stays whole.
    """
    ours: TracebackType | None = error.__traceback__
    while ours is not None and ours.tb_frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        ours = ours.tb_next
    return error if ours is None else error.with_traceback(ours)
