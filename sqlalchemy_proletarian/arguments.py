"""What is checked of arguments in more than one place."""

from __future__ import annotations


def at_least_one(name: str, value: int) -> int:
    """Return ``value``, or raise if it is no positive int; ``name`` is for the message."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be an int, not {value!r}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be at least 1, not {value}"
        raise ValueError(msg)
    return value
