"""How a payload becomes text and back.

:class:`JSONSerializer` stores what JSON gives back unchanged (``None``, booleans, numbers, strings,
lists and dicts with string keys, tuples as lists) and the typed objects whose handler's annotation
says what to rebuild: dataclasses, pydantic models and other types that msgspec knows. Anything else
is refused when the job is enqueued, with the place in the payload.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec

from .errors import PayloadError
from .payload_check import require_equal
from .payload_types import (
    has_typed_keys,
    is_mapped,
    is_pydantic,
    mapped_class_in,
    mentions_pydantic,
    pydantic_adapter,
)

_SCALARS = frozenset({str, int, bool, type(None)})

_DEEP = 100
"""Levels; no message need name a place that is deeper."""


@runtime_checkable
class Serializer(Protocol):
    """Turns payloads into text and back; producer and worker must use the same one.

    One that asks something of names has a method ``check_names(*, queue, job_type)`` besides: it is
    called wherever a job is enqueued, and raises ``ValueError`` to refuse.

    .. versionadded:: 0.1
    """

    def encode(self, payload: Any, annotation: Any = None) -> str:
        """Return ``payload`` as text.

        :param annotation: the type the handler declares for it, or None.
        :raises PayloadError: if it cannot be encoded; the message names the place in it.
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
        try:
            if annotation is not None:
                # What the annotation says is what decoding turns back: datetimes, UUIDs, models.
                payload = _typed(payload, annotation)
            plain = _plain(payload, "payload")
            text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
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
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            msg = f"the payload is not JSON: {error}; it starts with {text[:80]!r}"
            raise PayloadError(msg) from error
        if annotation is None:
            return plain
        if mentions_pydantic(annotation):
            return _validate(annotation, "validate_json", text)
        return convert(plain, annotation)


def _plain(value: Any, place: str) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        for key in value:
            if not isinstance(key, str):
                msg = f"{place} has the key {shown(key)}: JSON has only text keys, and renames it"
                raise PayloadError(msg)
        return {
            k: v if type(v) in _SCALARS else _plain(v, f"{place}[{k!r:.80}]")
            for k, v in value.items()
        }
    if kind in (list, tuple):
        return [
            v if type(v) in _SCALARS else _plain(v, f"{place}[{n}]") for n, v in enumerate(value)
        ]
    if isinstance(value, float):
        if not math.isfinite(value):
            msg = f"{place} is {value!r}, which JSON does not have"
            raise PayloadError(msg)
        return value
    if isinstance(value, str | int):  # equal to what comes back: StrEnum, IntEnum
        return value
    if is_mapped(kind):
        msg = (
            f"{place} is a mapped object of {kind.__module__}.{kind.__qualname__}: pass its id, "
            f"and load it in the handler's session"
        )
        raise PayloadError(msg)
    if is_pydantic(kind):
        return _plain(_dump(value, kind, place), place)
    if is_dataclass(kind) or isinstance(value, msgspec.Struct) or hasattr(kind, "__attrs_attrs__"):
        return _plain(_built_ins(value, place), place)
    msg = (
        f"{place} is a {kind.__module__}.{kind.__qualname__} ({value!r:.80}), which JSON cannot "
        f"give back: convert it yourself, or use a dataclass, TypedDict or pydantic model that "
        f"names its type"
    )
    raise PayloadError(msg)


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


def _typed(payload: Any, annotation: Any) -> Any:
    """Return a payload as plain values, as its annotation says."""
    if type(payload) in _SCALARS:
        return payload
    if mentions_pydantic(annotation):
        return _dump(payload, annotation, "payload")
    return _built_ins(payload, "payload", str_keys=has_typed_keys(annotation))


def _dump(value: Any, annotation: Any, place: str) -> Any:
    """Return a value of pydantic's as plain values, by the names that come back as the same."""
    adapter = pydantic_adapter(annotation)
    back: Any = None
    for by_alias in (True, False):
        try:
            # What "round_trip" leaves out is computed, and no input.
            plain = adapter.dump_python(
                value, mode="json", round_trip=True, by_alias=by_alias, warnings="error"
            )
            back = _validate(annotation, "validate_json", json.dumps(plain))
        except (PayloadError, ValueError, TypeError) as error:
            problem: Exception = error
        else:
            if back == value:
                return plain
            problem = _unequal(value, back, place)
    if isinstance(problem, PayloadError):
        raise problem
    msg = f"{place} cannot be encoded: {problem}"
    raise PayloadError(msg) from problem


def _unequal(value: Any, back: Any, place: str) -> Exception:
    try:
        require_equal(value, back, place)
    except PayloadError as error:
        return error
    return PayloadError(f"{place} is {value!r:.80}, but would come back as {back!r:.80}")


def _built_ins(value: Any, place: str, *, str_keys: bool = False) -> Any:
    try:
        return msgspec.to_builtins(value, str_keys=str_keys)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{place} cannot be encoded: {error}"
        raise PayloadError(msg) from error


def convert(plain: Any, annotation: Any) -> Any:
    """Return decoded JSON as the type that a handler's annotation asks for.

    :raises PayloadError: if it does not fit; the message names the place.
    """
    if mentions_pydantic(annotation):
        return _validate(annotation, "validate_python", plain)
    try:
        return msgspec.convert(plain, annotation, str_keys=has_typed_keys(annotation))
    except msgspec.ValidationError as error:
        msg = f"the payload does not fit {_name(annotation)}: {error}"
        raise PayloadError(msg) from error


def check_annotation(annotation: Any) -> None:
    """Raise ``TypeError`` when no payload can be decoded to ``annotation``."""
    if mapped := mapped_class_in(annotation):
        msg = (
            f"{mapped.__qualname__} is a mapped class: take its id, and load it in the handler's "
            f"session"
        )
        raise TypeError(msg)
    if mentions_pydantic(annotation):
        return
    info = msgspec.inspect.type_info(annotation)
    if isinstance(info, msgspec.inspect.CustomType):
        msg = f"{annotation!r} is neither a JSON type nor a dataclass, TypedDict or pydantic model"
        raise TypeError(msg)


def _validate(annotation: Any, how: str, value: Any) -> Any:
    """Return what pydantic makes of a value: by aliases as its models say, or by their names."""
    validate = getattr(pydantic_adapter(annotation), how)
    try:
        return validate(value)
    except ValueError as error:
        # Of a model whose aliases differ for input and output the text has the names.
        with suppress(ValueError, TypeError):  # pydantic knows these options since 2.11
            return validate(value, by_alias=False, by_name=True)
        msg = f"the payload does not fit {_name(annotation)}: {error}"
        raise PayloadError(msg) from error


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or repr(annotation)
