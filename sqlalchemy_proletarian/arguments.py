"""Argument checks shared by several modules."""

from __future__ import annotations


def is_storable(text: str) -> bool:
    """Return whether databases can store ``text``: PostgreSQL rejects NUL and lone surrogates."""
    if text.isascii():
        return "\0" not in text
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def at_least_one(name: str, value: int) -> int:
    """Return ``value`` unchanged if it is an int of at least 1.

    :param name: the name of the argument in error messages.
    :raises TypeError: if ``value`` is not an int.
    :raises ValueError: if ``value`` is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be an int, not {value!r}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be at least 1, not {value}"
        raise ValueError(msg)
    return value
