"""Calling what the user gave us: whatever it raises is an error, and ends no worker."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from typing import Any


def tamed(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function; ``sys.exit`` in it, and the like, become an error.

    :raises Exception: what it raises.
    :raises KeyboardInterrupt: and CancelledError, which are meant for the worker.
    """
    try:
        return function(*args)
    except (Exception, KeyboardInterrupt, CancelledError):
        raise
    except BaseException as raised:
        msg = f"{getattr(function, '__qualname__', function)} raised {raised!r}"
        raise RuntimeError(msg) from raised
