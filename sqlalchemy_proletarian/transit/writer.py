"""Transit encoding, limited to values that the Clojure library reads and decoding restores.

A payload that Clojure cannot read stops its worker, or blocks all jobs behind it. Doubtful values
are therefore rejected here, with an error that names their place. Codes for repeated strings are
not written; readers do not require them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import msgspec

from ..errors import PayloadError
from ..serializers.json_serializer import shown
from ..serializers.payload_check import change, mapped, mapped_in
from ..serializers.payload_types import (
    is_mapped,
    is_pydantic,
    is_typed,
    mapped_class_in,
    pydantic_adapter,
)
from ..serializers.typed import convert
from .reader import GROUND_TAGS, MAP, read
from .scalars import (
    SIGILS,
    RefusedError,
    any_text,
    big_integer,
    escaped,
    scalar_text,
    storable_text,
)
from .values import URI, FrozenMap, Keyword, Link, List, TaggedValue

_EXACT_IN_JSON = 2**53  # readers may decode larger integers as doubles

Plain: TypeAlias = Callable[[Any], Any]


def write(payload: Any, *, keyword_keys: bool, typed: bool | None = None) -> str:
    """Return ``payload`` encoded as Transit.

    :param keyword_keys: whether strings that are keys of maps are written as keywords.
    :param typed: whether the payload is decoded to an annotation, so that types without an
        equivalent in Transit can be restored. None, the default, if no handler is known; each typed
        object is then encoded by its own class.
    :raises RefusedError: if it cannot be encoded; the message names the part at fault.
    """
    plain = _built_ins if typed else None
    return _text(_Writer(keyword_keys=keyword_keys, plain=plain, typed=typed).value(payload))


def _text(raw: Any) -> str:
    if not isinstance(raw, list):
        raw = ["~#'", raw]
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":"))


class _Writer:
    """Converts values to values that JSON can represent.

    :param keyword_keys: see :func:`write`.
    :param plain: a callable that converts a value of a type without an equivalent in Transit to a
        simpler one. None, the default, rejects such values.
    :param typed: see :func:`write`.
    """

    def __init__(
        self, *, keyword_keys: bool, plain: Plain | None = None, typed: bool | None = True
    ) -> None:
        self._keyword_keys = keyword_keys
        self._plain = plain
        self._typed = typed

    def value(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return escaped(value)
        if value is None or kind is bool:
            return value
        if kind is dict or kind is FrozenMap:
            return self._map(value.items())
        if kind is list or kind is tuple:
            return self._array(value)
        if kind is List:
            return ["~#list", self._array(value)]
        if kind is set or kind is frozenset:
            return ["~#set", self._array(value)]
        if isinstance(value, str):
            return any_text(value)
        if isinstance(value, int) and abs(value) < _EXACT_IN_JSON:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        scalar = scalar_text(value)
        return self._composite(value, kind) if scalar is None else scalar

    def _composite(self, value: Any, kind: type[Any]) -> Any:
        if isinstance(value, Fraction):
            return ["~#ratio", [big_integer(value.numerator), big_integer(value.denominator)]]
        if kind is TaggedValue:
            return self._tagged(value)
        if kind is Link:
            return self._link(value)
        if is_mapped(kind):
            raise RefusedError(mapped(kind))
        if is_typed(kind):
            return self._object(value, kind)
        if self._plain is not None:
            return self.value(self._plain(value))
        msg = (
            f"is a {kind.__module__}.{kind.__qualname__} ({value!r:.80}), which Transit does not "
            f"support: convert it yourself, or use a dataclass, TypedDict or pydantic model that "
            f"declares its type"
        )
        raise RefusedError(msg)

    def _object(self, value: Any, kind: type[Any]) -> Any:
        if self._typed is False:
            msg = (
                f"is a {kind.__module__}.{kind.__qualname__}, but the handler declares no type for "
                f"it and would receive a dict: annotate the handler's payload"
            )
            raise RefusedError(msg)
        if is_pydantic(kind):
            raw = _raw_of_pydantic(value, kind)
        else:
            inner = _Writer(keyword_keys=self._keyword_keys, plain=self._plain or _built_ins)
            parts = _parts(value, kind)
            if isinstance(parts, list):
                raw = inner._array(parts)
            else:
                raw = inner._map(parts.items(), of_fields=True)
        if self._typed is None:
            _require_equal(value, raw, kind)
        return raw

    def _array(self, values: Iterable[Any]) -> list[Any]:
        raw: list[Any] = []
        try:
            for value in values:
                raw.append(self.value(value))  # noqa: PERF401 - its length is the index
        except RefusedError as refused:
            refused.path.append(f"[{len(raw)}]")
            raise
        return raw

    def _map(self, items: Iterable[tuple[Any, Any]], *, of_fields: bool = False) -> list[Any]:
        pairs = list(items)
        keys: list[Any] = [self._key(key) for key, _ in pairs]
        raw: list[Any] = []
        if composite := any(key is None for key in keys):  # then all keys are written as values
            keys = [self._composite_key(key) for key, _ in pairs]
        for written, (key, value) in zip(keys, pairs, strict=True):
            try:
                raw += (written, self.value(value))
            except RefusedError as refused:
                refused.path.append(f".{key}" if of_fields else f"[{key!r:.80}]")
                raise
        return ["~#cmap", raw] if composite else [MAP, *raw]

    def _key(self, key: Any) -> str | None:
        """Return a key of a map encoded as a string, or None if it is not a scalar."""
        if key is None:
            return "~_"
        if isinstance(key, bool):
            return "~?t" if key else "~?f"
        try:
            if isinstance(key, str):
                return self._text_key(key)
            if isinstance(key, float) and math.isfinite(key):
                return f"~d{float(key)!r}"
            return scalar_text(key)
        except RefusedError as refused:
            raise _refused_key(key, refused) from refused

    def _composite_key(self, key: Any) -> Any:
        try:
            return self._text_key(key) if isinstance(key, str) else self.value(key)
        except RefusedError as refused:
            raise _refused_key(key, refused) from refused

    def _text_key(self, key: str) -> str:
        if self._keyword_keys and type(key) not in SIGILS:
            return "~:" + storable_text(key)
        return any_text(key)

    def _tagged(self, tagged: TaggedValue) -> Any:
        tag, value = tagged.tag, tagged.value
        if not isinstance(tag, str) or not tag or tag in GROUND_TAGS:
            msg = f"has the tag {tag!r:.80}: it must be a string that Transit does not define"
            raise RefusedError(msg)
        if len(tag) == 1 and type(value) is str:
            return f"~{storable_text(tag)}{storable_text(value)}"
        try:
            return [f"~#{storable_text(tag)}", self.value(value)]
        except RefusedError as refused:
            refused.path.append(".value")
            raise

    def _link(self, link: Link) -> Any:
        parts = {field.name: getattr(link, field.name) for field in fields(link)}
        if link.render not in (None, "link", "image") or not all(
            isinstance(parts[name], str) for name in ("href", "rel")
        ):
            msg = f"is a link with an invalid href, rel or render: {link!r:.200}"
            raise RefusedError(msg)
        parts["href"] = URI(link.href)
        given = {name: part for name, part in parts.items() if part is not None}
        return ["~#link", _Writer(keyword_keys=False).value(given)]


def _refused_key(key: Any, refused: RefusedError) -> RefusedError:
    return RefusedError(f"has the key {shown(key)}, which {refused.args[0]}")


def _require_equal(value: Any, raw: Any, kind: type[Any]) -> None:
    """Check that an equal object is rebuilt from the encoded form of a typed object.

    :raises RefusedError: if not.
    """
    try:
        back = convert(read(_text(raw), plain_keys=True), kind)
    except (PayloadError, TypeError, NameError) as error:
        msg = f"would not come back from its text: {error}"
        raise RefusedError(msg) from error
    if found := change(value, back, ""):
        raise _refused_at(*found)


def _refused_at(where: str, reason: str) -> RefusedError:
    refused = RefusedError(reason)
    refused.path.append(where)
    return refused


def _raw_of_pydantic(value: Any, kind: type[Any]) -> Any:
    if mapped_class_in(kind) and (found := mapped_in(value, "")):
        raise _refused_at(*found)
    try:
        return _Writer(keyword_keys=True, plain=_of_pydantic).value(_dumped(value, kind))
    except Exception as error:  # user-defined serializers may raise anything
        if found := mapped_in(value, ""):
            raise _refused_at(*found) from error
        if isinstance(error, RefusedError):
            raise
        msg = f"cannot be encoded: {error}"
        raise RefusedError(msg) from error


def _dumped(value: Any, kind: type[Any]) -> Any:
    """Return a value dumped by pydantic, with aliases if an equal value is rebuilt from that."""
    adapter = pydantic_adapter(kind)
    dumped = adapter.dump_python(value, round_trip=True, by_alias=True, warnings=False)
    try:
        if change(value, convert(dumped, kind), "") is None:
            return dumped
    except PayloadError:  # its aliases are for output only
        pass
    return adapter.dump_python(value, round_trip=True, by_alias=False, warnings=False)


def _parts(value: Any, kind: type[Any]) -> dict[Keyword, Any] | list[Any]:
    """Return the fields of a typed object by name, or as a list for an array-like Struct."""
    if isinstance(value, msgspec.Struct):
        known = msgspec.structs.fields(kind)
        config = value.__struct_config__
        if config.array_like:
            tag = [] if config.tag is None else [config.tag]
            return [*tag, *(getattr(value, field.name) for field in known)]
        tags = {} if config.tag_field is None else {Keyword(config.tag_field): config.tag}
        return {**tags, **{Keyword(f.encode_name): getattr(value, f.name) for f in known}}
    named: Any = fields(kind) if is_dataclass(kind) else kind.__attrs_attrs__
    return {Keyword(field.name): getattr(value, field.name) for field in named}


def _built_ins(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value)
    except (TypeError, ValueError) as error:
        msg = f"cannot be encoded: {error}"
        raise RefusedError(msg) from error


def _of_pydantic(value: Any) -> Any:
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        msg = f"cannot be encoded: {error}"
        raise RefusedError(msg) from error
