"""How a payload becomes text and back.

:class:`JSONSerializer` stores what JSON gives back unchanged (``None``, booleans, numbers, strings,
lists and dicts with string keys, tuples as lists) and the typed objects whose handler's annotation
says what to rebuild: dataclasses, pydantic models and other types that msgspec knows. Anything else
is refused when the job is enqueued, with the place in the payload.
"""

from __future__ import annotations

import json
import math
from dataclasses import is_dataclass
from typing import Any, Protocol, get_args, is_typeddict, runtime_checkable

import msgspec

from .errors import PayloadError

_SCALARS = frozenset({str, int, bool, type(None)})


@runtime_checkable
class Serializer(Protocol):
    """Turns payloads into text and back; producer and worker must use the same one.

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


class JSONSerializer:
    """The default serializer: JSON, strict about what survives the way there and back.

    .. versionadded:: 0.1
    """

    def encode(self, payload: Any, annotation: Any = None) -> str:
        """Return ``payload`` as JSON; see :meth:`Serializer.encode`."""
        if is_typeddict(annotation):
            # Nothing but the annotation tells a TypedDict from a dict: its datetimes, UUIDs and
            # decimals become text here because decoding turns them back.
            payload = _built_ins(payload, "payload")
        try:
            plain = _plain(payload, "payload")
            text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        except RecursionError as error:
            msg = "payload contains itself or is nested too deeply"
            raise PayloadError(msg) from error
        except ValueError as error:  # an int with more digits than Python turns into text
            if isinstance(error, PayloadError):
                raise
            msg = f"payload cannot be encoded: {error}"
            raise PayloadError(msg) from error
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a lone surrogate: PostgreSQL stores its escape only
            text = json.dumps(plain, separators=(",", ":"))
            if json.loads(text) != plain:
                msg = "payload has text where two surrogates meet: JSON makes one character of them"
                raise PayloadError(msg) from error
        return text

    def decode(self, text: str, annotation: Any = None) -> Any:
        """Return the payload; see :meth:`Serializer.decode`."""
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            msg = f"the payload is not JSON: {error}; it starts with {text[:80]!r}"
            raise PayloadError(msg) from error
        return plain if annotation is None else convert(plain, annotation)


def _plain(value: Any, place: str) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        for key in value:
            if not isinstance(key, str):
                msg = f"{place} has the key {key!r}: JSON has only text keys, and would rename it"
                raise PayloadError(msg)
        return {
            k: v if type(v) in _SCALARS else _plain(v, f"{place}[{k!r}]") for k, v in value.items()
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
    if _is_pydantic(kind):
        return _plain(_pydantic_adapter(kind).dump_python(value, mode="json"), place)
    if is_dataclass(kind) or isinstance(value, msgspec.Struct) or hasattr(kind, "__attrs_attrs__"):
        return _plain(_built_ins(value, place), place)
    msg = (
        f"{place} is a {kind.__module__}.{kind.__qualname__} ({value!r:.80}), which JSON cannot "
        f"give back: convert it yourself, or use a dataclass, TypedDict or pydantic model that "
        f"names its type"
    )
    raise PayloadError(msg)


def _built_ins(value: Any, place: str) -> Any:
    try:
        return msgspec.to_builtins(value)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{place} cannot be encoded: {error}"
        raise PayloadError(msg) from error


def convert(plain: Any, annotation: Any) -> Any:
    """Return decoded JSON as the type that a handler's annotation asks for.

    :raises PayloadError: if it does not fit; the message names the place.
    """
    if _mentions_pydantic(annotation):
        try:
            return _pydantic_adapter(annotation).validate_python(plain)
        except ValueError as error:
            msg = f"the payload does not fit {_name(annotation)}: {error}"
            raise PayloadError(msg) from error
    try:
        return msgspec.convert(plain, annotation)
    except msgspec.ValidationError as error:
        msg = f"the payload does not fit {_name(annotation)}: {error}"
        raise PayloadError(msg) from error


def check_annotation(annotation: Any) -> None:
    """Raise ``TypeError`` when no payload can be decoded to ``annotation``."""
    if _mentions_pydantic(annotation):
        return
    info = msgspec.inspect.type_info(annotation)
    if isinstance(info, msgspec.inspect.CustomType):
        msg = f"{annotation!r} is neither a JSON type nor a dataclass, TypedDict or pydantic model"
        raise TypeError(msg)


def _is_pydantic(kind: Any) -> bool:
    return hasattr(kind, "__pydantic_validator__")


def _mentions_pydantic(annotation: Any) -> bool:
    return _is_pydantic(annotation) or any(map(_mentions_pydantic, get_args(annotation)))


def _pydantic_adapter(annotation: Any) -> Any:
    # Reached only for types that pydantic made, so it is installed.
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or repr(annotation)
