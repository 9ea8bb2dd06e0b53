"""How a payload becomes text and back.

:class:`JSONSerializer` stores what JSON gives back unchanged (``None``, booleans, numbers, strings,
lists and dicts with string keys, tuples as lists) and the typed objects whose handler's annotation
says what to rebuild: dataclasses, pydantic models and other types that msgspec knows. Anything else
is refused when the job is enqueued, with the place in the payload: what is typed is decoded at once
and compared. Where no handler is known, an object's own class stands for the annotation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from ..errors import PayloadError
from .payload_check import mapped, refuse_mapped, require_equal, unstorable
from .payload_types import (
    is_mapped,
    is_plain,
    is_typed,
    mapped_class_in,
    mentions_pydantic,
)
from .typed import (
    built_ins,
    convert,
    from_json,
    plain_of_pydantic,
    pydantic_text,
    rebuilt,
)

_SCALARS = frozenset({str, int, bool, type(None)})

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_DEEP = 100
"""Levels; no message need name a place that is deeper."""


@runtime_checkable
class Serializer(Protocol):
    """Turns payloads into text and back; producer and worker must use the same one.

    What ``encode`` returns must decode to a payload that is equal; what would not is to be refused
    there. A serializer of your own is taken at its word.

    One that asks something of names has a method ``check_names(*, queue, job_type)`` besides: it is
    called wherever a job is enqueued, and raises ``ValueError`` to refuse.

    .. versionadded:: 0.1
    """

    def encode(self, payload: Any, annotation: Any = None) -> str:
        """Return ``payload`` as text.

        :param annotation: the type the handler declares for it, ``Any`` if it declares none; None
            where no handler is known.
        :raises PayloadError: if it would not come back equal; the message names the place in it.
        """
        ...

    def decode(self, text: str, annotation: Any = None) -> Any:
        """Return the payload that ``text`` stands for.

        :param annotation: the type the handler declares for it, or None for plain values.
        :raises PayloadError: if the text is malformed or does not fit the annotation.
        """
        ...


def check_names(serializer: Serializer, *, queue: str, job_type: str) -> None:
    """Ask the serializer, if it cares, whether a job may have these names."""
    check = getattr(serializer, "check_names", None)
    if check is not None:
        check(queue=queue, job_type=job_type)


class JSONSerializer:
    """The default serializer: JSON, strict about what survives the way there and back.

    .. versionadded:: 0.1
    """

    def encode(self, payload: Any, annotation: Any = None) -> str:
        """Return ``payload`` as JSON; see :meth:`Serializer.encode`."""
        plain: Any = None
        if annotation is None and is_typed(type(payload)):
            annotation = type(payload)  # which is all that is known
        try:
            if annotation is None:
                plain = _plain(payload, "payload", typed=True)
            elif mentions_pydantic(annotation):
                return pydantic_text(payload, annotation, "payload")
            else:
                plain = _typed(payload, annotation, "payload")
            text = _dumps(plain)
        except RecursionError:
            raise nested_too_deeply(payload) from None  # its hundreds of lines say no more
        except ValueError as error:  # an int with more digits than Python turns into text
            if isinstance(error, PayloadError):
                raise
            msg = f"{_first(plain, _has_too_many_digits)} cannot be encoded: {error}"
            raise PayloadError(msg) from error
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a lone surrogate: PostgreSQL stores its escape only
            text = json.dumps(plain, separators=(",", ":"))
            if json.loads(text) != plain:
                place = _first(plain, _changes)
                msg = f"{place} has text where two surrogates meet: JSON makes one of them"
                raise PayloadError(msg) from error
        return text

    def decode(self, text: str, annotation: Any = None) -> Any:
        """Return the payload; see :meth:`Serializer.decode`."""
        if annotation is None:
            return _loads(text)
        if not mentions_pydantic(annotation):
            return convert(_loads(text), annotation)
        try:
            return from_json(text, annotation)
        except PayloadError:
            _loads(text)  # says so if it is no JSON at all
            raise


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"the payload is not JSON: {error}; it starts with {text[:80]!r}"
        raise PayloadError(msg) from error


def _typed(payload: Any, annotation: Any, place: str) -> Any:
    """Return a payload as plain values from which the annotation makes an equal one."""
    if is_plain(annotation):
        plain = _plain(payload, place, typed=False)
        rebuilt(plain, annotation, place)
        return plain
    if mapped_class_in(annotation):
        refuse_mapped(payload, place)
    plain = _plain(built_ins(payload, place), place, typed=False)
    require_equal(payload, rebuilt(plain, annotation, place), place)
    return plain


def _plain(value: Any, place: str, *, typed: bool) -> Any:
    """Return what JSON has for a value, and gives back as it was.

    :param typed: whether a typed object stands for itself; otherwise it would come back as a dict.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        for key in value:
            if not isinstance(key, str):
                msg = f"{place} has the key {shown(key)}: JSON has only text keys, and renames it"
                raise PayloadError(msg)
        return {
            k: v if type(v) in _SCALARS else _plain(v, f"{place}[{k!r:.80}]", typed=typed)
            for k, v in value.items()
        }
    if kind in (list, tuple):
        return [
            v if type(v) in _SCALARS else _plain(v, f"{place}[{n}]", typed=typed)
            for n, v in enumerate(value)
        ]
    if isinstance(value, float):
        if not math.isfinite(value):
            msg = f"{place} is {value!r}, which JSON does not have"
            raise PayloadError(msg)
        return float(value)
    if isinstance(value, str):  # equal to what comes back: StrEnum, IntEnum
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if is_mapped(kind):
        msg = f"{place} {mapped(kind)}"
        raise PayloadError(msg)
    if is_typed(kind):
        if not typed:
            msg = (
                f"{place} is a {kind.__module__}.{kind.__qualname__}, but the handler declares no "
                f"type for it and would get a dict: annotate the handler's payload"
            )
            raise PayloadError(msg)
        if mentions_pydantic(kind):
            return plain_of_pydantic(value, kind, place)
        return _typed(value, kind, place)
    raise unstorable(value, place)


def shown(value: Any) -> str:
    """Return the beginning of a value's repr, for messages."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # an int with more digits than Python turns into text
        return f"a huge {type(value).__qualname__}"


def nested_too_deeply(payload: Any) -> PayloadError:
    """Return the error about a payload that cannot be followed to its end."""
    deep = _first(payload, lambda _, depth: depth == _DEEP)
    return PayloadError(f"payload contains itself or is nested too deeply: {deep:.80}…")


def _first(payload: Any, bad: Callable[[Any, int], bool]) -> str:
    """Return the place of the first bad key or value: ``bad`` is told how deep it is as well."""
    found = (place for place, value, depth in _walk(payload) if bad(value, depth))
    return next(found, "payload")


def _walk(payload: Any) -> Iterator[tuple[str, Any, int]]:
    """Go through keys and values in their order, without recursion; it may have no end."""
    ahead: list[tuple[str, Any, int]] = [("payload", payload, 0)]
    while ahead:
        place, value, depth = ahead.pop()
        yield place, value, depth
        inner: list[tuple[str, Any, int]] = []
        if isinstance(value, dict):
            for k, v in value.items():
                at = f"{place}[{shown(k)}]"
                inner += [(at, k, depth + 1), (at, v, depth + 1)]
        elif isinstance(value, list | tuple):
            inner += [(f"{place}[{n}]", v, depth + 1) for n, v in enumerate(value)]
        ahead += reversed(inner)


def _has_too_many_digits(value: Any, _depth: int) -> bool:
    try:
        return isinstance(value, int) and not str(value)
    except ValueError:
        return True


def _changes(value: Any, _depth: int) -> bool:
    return isinstance(value, str) and json.loads(json.dumps(value)) != value
