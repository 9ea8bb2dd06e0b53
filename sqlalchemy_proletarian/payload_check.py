"""Whether a payload comes back from its text as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from .errors import PayloadError

_HIDDEN = "__pydantic_private__", "__pydantic_extra__"
"""What models of pydantic keep beside their fields."""


def require_equal(payload: Any, back: Any, place: str = "payload") -> None:
    """Raise :class:`PayloadError` unless a payload came back equal, and of its own type.

    :param back: what its text was decoded to.
    :param place: what the message calls the whole.
    """
    if type(back) is type(payload) and back == payload:
        return
    found = _difference(payload, back, place)
    if found is None:  # tuples where nothing but a list can come back
        return
    where, was, is_now = found
    msg = (
        f"{where} is {_shown(was)}, but would come back as {_shown(is_now)}: give it a type "
        f"that says what to rebuild, or convert it yourself"
    )
    raise PayloadError(msg)


def _difference(was: Any, now: Any, place: str) -> tuple[str, Any, Any] | None:
    """Return the first place where two payloads differ, and what there is."""
    if isinstance(was, tuple) and isinstance(now, list):
        was = list(was)
    if type(was) is not type(now):
        # A subclass of a plain type may be equal, such as a StrEnum.
        plain = isinstance(was, type(now)) and isinstance(now, str | int | float)
        return None if plain and was == now and not isinstance(was, bool) else (place, was, now)
    if isinstance(was, Mapping):
        for key in [*was, *(key for key in now if key not in was)]:
            if key not in now or key not in was:
                return f"{place}[{key!r:.80}]", was.get(key, _ABSENT), now.get(key, _ABSENT)
            if found := _difference(was[key], now[key], f"{place}[{key!r:.80}]"):
                return found
        return None
    if isinstance(was, list | tuple):
        if len(was) != len(now):
            return place, was, now
        pairs = enumerate(zip(was, now, strict=True))
        differences = (_difference(a, b, f"{place}[{n}]") for n, (a, b) in pairs)
        return next(filter(None, differences), None)
    names = _names_of(was)
    for name in names:
        a, b = getattr(was, name, _ABSENT), getattr(now, name, _ABSENT)
        if found := _difference(a, b, f"{place}.{name}"):
            return found
    return None if names or was == now else (place, was, now)


def _names_of(value: Any) -> list[str]:
    if is_dataclass(value):
        return [field.name for field in fields(value)]
    for attribute in ("__struct_fields__", "__pydantic_fields__", "__attrs_attrs__"):
        if names := getattr(type(value), attribute, None):
            return [*(getattr(name, "name", name) for name in names), *_HIDDEN]
    return []


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _shown(value: Any) -> str:
    kind = type(value)
    if value is _ABSENT:
        return "absent"
    return f"{value!r:.80} ({kind.__module__}.{kind.__qualname__})"
