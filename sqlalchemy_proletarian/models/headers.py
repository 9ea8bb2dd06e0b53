"""The headers of a job: what a JSON column returns as it was stored, on every database."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from ..arguments import is_storable
from ..errors import PayloadError

_DEEPEST: Final = 50
"""MySQL stores JSON that is nested up to 100 times."""

_INTEGERS: Final = range(-(2**63), 2**63)
"""MySQL converts larger integers to floats."""

_LARGEST_FLOAT: Final = 2.0**53
"""PostgreSQL writes out all digits of a larger float, and returns it as another integer."""


def checked_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers as plain values, which databases return unchanged.

    :raises PayloadError: if a value would not be equal after storing it; the message names it.
    :raises TypeError: if ``headers`` is not a mapping.
    """
    if not isinstance(headers, Mapping):
        msg = f"headers must be a mapping of strings to JSON values, not {headers!r:.100}"
        raise TypeError(msg)
    return _mapping(headers, "headers", 1)


def _mapping(value: Mapping[Any, Any], place: str, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        at = f"{place}[{key!r:.80}]"
        if not isinstance(key, str):
            msg = f"{place} has the key {key!r:.80}, which is not a string: JSON would convert it"
            raise PayloadError(msg)
        plain[_text(key, at)] = _plain(item, at, depth)
    return plain


def _plain(value: Any, place: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, int):
        if int(value) not in _INTEGERS:
            msg = f"{place} is an integer of more than 64 bits: pass it as a string"
            raise PayloadError(msg)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) > _LARGEST_FLOAT:
            msg = f"{place} is {value!r}, which databases do not store exactly as JSON"
            raise PayloadError(msg)
        return float(value)
    if depth == _DEEPEST:
        msg = f"{place:.80}… contains itself or is nested too deeply"
        raise PayloadError(msg)
    if isinstance(value, Mapping):
        return _mapping(value, place, depth + 1)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{n}]", depth + 1) for n, item in enumerate(value)]
    kind = type(value)
    msg = (
        f"{place} is a {kind.__module__}.{kind.__qualname__} ({value!r:.80}), which JSON cannot "
        f"restore: convert it to a string"
    )
    raise PayloadError(msg)


def _text(value: str, place: str) -> str:
    if not is_storable(value):
        msg = f"{place} has a NUL or a lone surrogate, which cannot be stored"
        raise PayloadError(msg)
    return str.__str__(value)
