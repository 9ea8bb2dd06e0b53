"""Exception types that a user names, and which errors are of these types."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

ExceptionTypes: TypeAlias = type[Exception] | Collection[type[Exception]]
"""An exception type, or a tuple or other collection of them. Each stands for its subclasses too."""


def as_error_types(name: str, value: Any) -> tuple[type[Exception], ...]:
    """Return exception types as a tuple.

    :param name: the name of the argument in error messages.
    :raises TypeError: if something is not a subclass of Exception.
    """
    types = (value,) if isinstance(value, type) else value
    if isinstance(types, str | bytes | Mapping) or not isinstance(types, Collection):
        msg = f"{name} must be an exception type or a tuple of them, not {value!r}"
        raise TypeError(msg)
    for one in types:
        if not isinstance(one, type) or not issubclass(one, Exception):
            msg = f"{name} must contain only subclasses of Exception, not {one!r}"
            raise TypeError(msg)
    return tuple(types)


def each_is(error: BaseException, types: tuple[type[Exception], ...]) -> bool:
    """Return whether an error, or each error in a group, is of one of the types."""
    if isinstance(error, types):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(each_is(one, types) for one in error.exceptions)
    return False


def any_is(error: BaseException, types: tuple[type[Exception], ...]) -> bool:
    """Return whether an error, or one in a group, is of one of the types."""
    if isinstance(error, types):
        return True
    if isinstance(error, BaseExceptionGroup):
        return any(any_is(one, types) for one in error.exceptions)
    return False
