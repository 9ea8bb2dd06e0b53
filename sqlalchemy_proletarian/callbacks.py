"""Call user-supplied functions so that ``sys.exit`` in them does not end the worker."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from typing import Any


def call_user_function(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function and return its result.

    :raises Exception: any exception that the function raises.
    :raises KeyboardInterrupt: if raised by the function; it is meant for the worker.
    :raises asyncio.CancelledError: if raised by the function; it is meant for the worker.
    :raises RuntimeError: if the function raises another ``BaseException``, such as ``SystemExit``.
    """
    try:
        return function(*args)
    except (Exception, KeyboardInterrupt, CancelledError):
        raise
    except BaseException as raised:
        msg = f"{getattr(function, '__qualname__', function)} raised {raised!r}"
        raise RuntimeError(msg) from raised
