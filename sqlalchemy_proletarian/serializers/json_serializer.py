"""Serializers, which encode payloads as text and decode them.

:class:`JSONSerializer` accepts values that JSON preserves: ``None``, booleans, numbers, strings,
lists, dicts with string keys, and tuples, which become lists. It also accepts typed objects that
can be rebuilt from the annotation of the handler's payload: dataclasses, pydantic models and other
types that msgspec supports. A typed payload is decoded again when it is encoded, and the result is
compared with the payload. Any other value raises an error when the job is enqueued, and the message
names the part of the payload at fault. If no handler is known, an object's own class is used as the
annotation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import msgspec

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

_dumps_fast = msgspec.json.Encoder().encode
_loads_fast = msgspec.json.Decoder().decode

_DEEP = 100
"""The nesting depth at which error messages stop."""


@runtime_checkable
class Serializer(Protocol):
    """The protocol of serializers. Producer and worker must use the same serializer.

    The text that ``encode`` returns must decode to an equal payload; for other payloads ``encode``
    must raise an error. The library does not verify this for a custom serializer.

    A serializer that restricts the names of queues or job types also has a method
    ``check_names(*, queue, job_type)``. It is called for each job that is enqueued, and raises
    ``ValueError`` to reject a name.

    .. versionadded:: 0.1
    """

    def encode(self, payload: Any, annotation: Any = None) -> str:
        """Return ``payload`` encoded as text.

        :param payload: the payload.
        :param annotation: the type that the handler declares for the payload, ``Any`` if it
            declares none, or None, the default, if no handler is known.
        :raises PayloadError: if decoding the text would not return an equal payload; the message
            names the part at fault.
        """
        ...

    def decode(self, text: str, annotation: Any = None) -> Any:
        """Return the payload decoded from ``text``.

        :param text: what :meth:`encode` returned.
        :param annotation: the type that the handler declares for the payload, or None, the default,
            to return plain values.
        :raises PayloadError: if the text is malformed or does not fit the annotation.
        """
        ...


def check_names(serializer: Serializer, *, queue: str, job_type: str) -> None:
    """Check the names with the serializer's ``check_names``, if it has that method.

    :raises ValueError: if the serializer rejects a name.
    """
    check = getattr(serializer, "check_names", None)
    if check is not None:
        check(queue=queue, job_type=job_type)


class JSONSerializer:
    """The default serializer: JSON, which rejects payloads that decoding would not restore.

    .. versionadded:: 0.1
    """

    def encode(self, payload: Any, annotation: Any = None) -> str:
        """Return ``payload`` encoded as JSON; see :meth:`Serializer.encode`.

        :param payload: the payload.
        :param annotation: the type that the handler declares for the payload, ``Any`` if it
            declares none, or None, the default, if no handler is known.
        :raises PayloadError: if the text would not decode to an equal payload.
        """
        plain: Any = None
        if annotation is None and is_typed(type(payload)):
            annotation = type(payload)
        try:
            if annotation is None:
                plain = _plain(payload, "payload", typed=True)
            elif mentions_pydantic(annotation):
                return pydantic_text(payload, annotation, "payload")
            else:
                plain = _typed(payload, annotation, "payload")
            text = _text_of(plain)
        except RecursionError:
            raise nested_too_deeply(payload) from None  # the long traceback adds nothing
        except ValueError as error:  # an int above Python's limit for str conversion
            if isinstance(error, PayloadError):
                raise
            msg = f"{_first(plain, _has_too_many_digits)} cannot be encoded: {error}"
            raise PayloadError(msg) from error
        try:
            text.encode()
        except UnicodeEncodeError as error:  # PostgreSQL stores lone surrogates only as escapes
            text = json.dumps(plain, separators=(",", ":"))
            if json.loads(text) != plain:
                place = _first(plain, _changes)
                msg = f"{place} has text where two surrogates meet: JSON would join them"
                raise PayloadError(msg) from error
        return text

    def decode(self, text: str, annotation: Any = None) -> Any:
        """Return the payload decoded from JSON; see :meth:`Serializer.decode`.

        :param text: the stored text.
        :param annotation: the type that the handler declares for the payload, or None, the default,
            to return plain values.
        :raises PayloadError: if the text is malformed or does not fit the annotation.
        """
        if annotation is None:
            return _loads(text)
        if not mentions_pydantic(annotation):
            return convert(_loads(text), annotation)
        try:
            return from_json(text, annotation)
        except PayloadError:
            _loads(text)  # raises a clearer error if the text is not JSON
            raise


def _loads(text: str) -> Any:
    try:
        return _loads_fast(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass  # it is no JSON, or has an infinity or a lone surrogate
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"the payload is not JSON: {error}"  # without the text: payloads are not logged
        raise PayloadError(msg) from error


def _text_of(plain: Any) -> str:
    """Return plain values as JSON, which may have lone surrogates."""
    try:
        return _dumps_fast(plain).decode()
    except (OverflowError, ValueError):  # an int above 64 bits, or a lone surrogate
        return _dumps(plain)


def _typed(payload: Any, annotation: Any, place: str) -> Any:
    """Return a payload as plain values from which an equal payload can be rebuilt.

    :raises PayloadError: if that is not possible.
    """
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
    """Return a value as plain values that JSON preserves.

    :param place: the path to the value, for error messages.
    :param typed: whether typed objects are encoded by their own class. If not, they are rejected,
        because they would be decoded as dicts.
    :raises PayloadError: if JSON would not preserve the value.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        for key in value:
            if not isinstance(key, str):
                msg = f"{place} has the key {shown(key)}: JSON would convert it to a string"
                raise PayloadError(msg)
        return {
            (k if type(k) is str else str.__str__(k)): (
                v if type(v) in _SCALARS else _plain(v, f"{place}[{k!r:.80}]", typed=typed)
            )
            for k, v in value.items()
        }
    if kind in (list, tuple):
        return [
            v if type(v) in _SCALARS else _plain(v, f"{place}[{n}]", typed=typed)
            for n, v in enumerate(value)
        ]
    if isinstance(value, float):
        if not math.isfinite(value):
            msg = f"{place} is {value!r}, which JSON does not support"
            raise PayloadError(msg)
        return float(value)
    if isinstance(value, str):  # StrEnum and IntEnum equal the decoded value
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
                f"type for it and would receive a dict: annotate the handler's payload"
            )
            raise PayloadError(msg)
        if mentions_pydantic(kind):
            return plain_of_pydantic(value, kind, place)
        return _typed(value, kind, place)
    raise unstorable(value, place)


def shown(value: Any) -> str:
    """Return the beginning of a value's repr, for error messages."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # an int above Python's limit for str conversion
        return f"a huge {type(value).__qualname__}"


def nested_too_deeply(payload: Any) -> PayloadError:
    """Return the error for a payload that contains itself or is nested too deeply."""
    deep = _first(payload, lambda _, depth: depth == _DEEP)
    return PayloadError(f"payload contains itself or is nested too deeply: {deep:.80}…")


def _first(payload: Any, bad: Callable[[Any, int], bool]) -> str:
    """Return the path of the first key or value for which ``bad(value, depth)`` is true."""
    found = (place for place, value, depth in _walk(payload) if bad(value, depth))
    return next(found, "payload")


def _walk(payload: Any) -> Iterator[tuple[str, Any, int]]:
    """Yield (path, value, depth) of all keys and values in order, endlessly if there is a cycle."""
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
