"""Comparison of a payload with the result of encoding and decoding it.

Payloads are compared part by part, because the ``==`` of a class may ignore a field that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID

from ..errors import PayloadError
from .payload_types import fields_of, is_mapped, is_pydantic

_SCALARS = frozenset(
    {NoneType, bool, int, float, str, bytes, Decimal, UUID, datetime, date, time, timedelta}
)

_ABSENT = object()
"""Stands for a part that exists in only one of two payloads."""


def require_equal(payload: Any, back: Any, place: str = "payload") -> None:
    """Check that a payload equals its decoded copy.

    Equal values may differ in type, such as ``1`` and ``1.0`` or a ``StrEnum`` and its text. A
    tuple may be decoded as a list.

    :param back: the decoded copy.
    :param place: the name of the payload in error messages.
    :raises PayloadError: if they are not equal; the message names the first part that differs.
    """
    if found := change(payload, back, place):
        raise PayloadError(" ".join(found))


def change(payload: Any, back: Any, place: str) -> tuple[str, str] | None:
    """Return the first difference of a payload and its decoded copy, or None if they are equal.

    :return: the path to the part that differs, and the rest of the error message.
    """
    found = _difference(payload, back, place)
    if found is None:
        return None
    if said := mapped_in(payload, place):
        return said
    where, was, now = found
    if hasattr(was, "get_secret_value"):
        return where, (
            f"is a {type(was).__qualname__}, which is stored as asterisks only: pass a value by "
            f"which the handler can find it, or give the field a serializer that stores the value"
        )
    return where, (
        f"is {_shown(was)}, but would come back as {_shown(now)}: annotate it with a type from "
        f"which it can be rebuilt, or convert it yourself"
    )


def refuse_mapped(payload: Any, place: str = "payload") -> None:
    """Check that a payload contains no mapped object.

    :raises PayloadError: if it contains one; the message names its place.
    """
    if found := mapped_in(payload, place):
        raise PayloadError(" ".join(found))


def mapped_in(payload: Any, place: str) -> tuple[str, str] | None:
    """Return the first mapped object in a payload, or None if there is none.

    The object's attributes are not read, because that might load them from the database.

    :return: the path to the object, and the rest of the error message.
    """
    for where, part in parts_of(payload, place):
        if is_mapped(type(part)):
            return where, mapped(type(part))
    return None


def mapped(kind: type[Any]) -> str:
    """Return the error message for a mapped object in a payload, without the object's path."""
    return (
        f"is a mapped object of {kind.__module__}.{kind.__qualname__}: pass its id, and load it in "
        f"the handler's session"
    )


def unstorable(value: Any, place: str) -> PayloadError:
    """Return the error for a value of a type that decoding cannot restore."""
    kind = type(value)
    return PayloadError(
        f"{place} is a {kind.__module__}.{kind.__qualname__} ({value!r:.80}), which JSON cannot "
        f"restore: convert it yourself, or use a dataclass, TypedDict or pydantic model that "
        f"declares its type"
    )


def parts_of(payload: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) for a payload and all its parts; no object is yielded twice."""
    ahead, seen = [(place, payload)], dict[int, Any]()
    while ahead:
        at, value = ahead.pop()
        if type(value) not in _SCALARS:
            if id(value) in seen:
                continue
            seen[id(value)] = value  # the reference keeps the id from being reused
        yield at, value
        ahead += reversed([(at + step, part) for step, part in inner_parts(value)])


def inner_parts(value: Any) -> list[tuple[str, Any]]:
    """Return the direct parts of a value as pairs (path step, part)."""
    if isinstance(value, Mapping):
        return [(f"[{key!r:.80}]", part) for key, part in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{n}]", part) for n, part in enumerate(value)]
    return [(f".{name}", getattr(value, name, None)) for name in fields_of(type(value))]


def _difference(was: Any, now: Any, place: str) -> tuple[str, Any, Any] | None:
    """Return the path of the first difference and both values, or None if there is none."""
    kind, there = type(was), type(now)
    if kind is there and kind in _SCALARS:
        return None if was == now or _same(was, now) else (place, was, now)
    if isinstance(was, Mapping) and (kind is there or there is dict):
        return _of_mappings(was, now, place)
    if isinstance(was, list | tuple) and (
        kind is there
        or (there is list and (kind is tuple or isinstance(was, list)))
        or (there is tuple and isinstance(was, tuple))
    ):
        return _of_sequences(was, now, place)
    if _origin(kind) is _origin(there) and (names := fields_of(kind)):
        return _of_fields(was, now, names, place)
    return None if _are_equal(was, now) else (place, was, now)


def _of_mappings(
    was: Mapping[Any, Any], now: Mapping[Any, Any], place: str
) -> tuple[str, Any, Any] | None:
    for key in [*was, *(key for key in now if key not in was)]:
        one, other = was.get(key, _ABSENT), now.get(key, _ABSENT)
        if type(one) is type(other) and type(one) in _SCALARS and one == other:
            continue
        if found := _difference(one, other, f"{place}[{key!r:.80}]"):
            return found
    return None


def _of_sequences(was: Any, now: Any, place: str) -> tuple[str, Any, Any] | None:
    if len(was) != len(now):
        return place, was, now
    for n, (one, other) in enumerate(zip(was, now, strict=True)):
        if type(one) is type(other) and type(one) in _SCALARS and one == other:
            continue
        if found := _difference(one, other, f"{place}[{n}]"):
            return found
    return None


def _of_fields(was: Any, now: Any, names: Iterable[str], place: str) -> tuple[str, Any, Any] | None:
    for name in names:
        one, other = getattr(was, name, _ABSENT), getattr(now, name, _ABSENT)
        if type(one) is type(other) and type(one) in _SCALARS and one == other:
            continue
        if found := _difference(one, other, f"{place}.{name}"):
            return found
    if is_pydantic(type(was)):
        for hidden in ("__pydantic_private__", "__pydantic_extra__"):
            one, other = getattr(was, hidden, None) or {}, getattr(now, hidden, None) or {}
            for name in {**one, **other}:
                a, b = one.get(name, _ABSENT), other.get(name, _ABSENT)
                if found := _difference(a, b, f"{place}.{name}"):
                    return found
    return None


def _are_equal(was: Any, now: Any) -> bool:
    kind, there = type(was), type(now)
    if kind is there or {kind, there} == {set, frozenset}:
        return bool(was == now)
    if bool in (kind, there) or not (kind in _SCALARS or there in _SCALARS):
        return False
    related = isinstance(was, there) or isinstance(now, kind)
    numbers = isinstance(was, int | float | Decimal) and isinstance(now, int | float | Decimal)
    return (related or numbers) and _same(was, now)


def _same(was: Any, now: Any) -> bool:
    if was == now:
        return True
    if isinstance(was, datetime) and isinstance(now, datetime):
        # Times in the repeated hour of a clock change never equal times of another zone.
        return was.utcoffset() == now.utcoffset() and _local(was) == _local(now)
    return bool(was != was and now != now)  # noqa: PLR0124 - NaN, which Transit supports


def _local(when: datetime) -> datetime:
    return when.replace(tzinfo=None, fold=0)


def _origin(kind: type[Any]) -> Any:
    # pydantic creates a class for each Box[int], whose objects may equal objects of Box.
    generic: Any = getattr(kind, "__pydantic_generic_metadata__", None)
    return (generic and generic["origin"]) or kind


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    kind = type(value)
    try:
        text = f"{value!r:.80}"
    except Exception:  # __repr__ is the user's code
        text = "an object"
    return f"{text} ({kind.__module__}.{kind.__qualname__})"
