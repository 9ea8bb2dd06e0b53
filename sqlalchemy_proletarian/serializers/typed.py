"""Conversion of typed payloads to plain values, and back by an annotation.

pydantic converts them if the annotation contains a pydantic type, otherwise msgspec does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, cast

import msgspec

from ..errors import PayloadError
from .payload_check import inner_parts, parts_of, refuse_mapped, require_equal, unstorable
from .payload_types import (
    mapped_class_in,
    mentions_pydantic,
    pydantic_adapter,
    writes_other_aliases,
)

_BASES: dict[type[Any], Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes.__bytes__,
    Decimal: Decimal,
    datetime: lambda when: datetime.combine(
        date(when.year, when.month, when.day), when.timetz().replace(fold=when.fold)
    ),
    date: lambda day: date(day.year, day.month, day.day),
    timedelta: lambda span: timedelta(span.days, span.seconds, span.microseconds),
}
"""Functions that convert an object of a subclass to the base class, which msgspec requires."""

_ENUM_VALUE: Final = re.compile(r"^(Invalid enum value) (?:'.*'|\S+)(?= - at |$)", re.DOTALL)
"""The only message of msgspec's own with a value of the payload."""

_MOST: Final = 5
"""How many problems a message names."""


def built_ins(value: Any, place: str) -> Any:
    """Return a payload as plain values, according to the types of its parts.

    :param place: the name of the payload in error messages.
    :raises PayloadError: if a part has an unsupported type; the message names its place.
    """
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_of_base)
    except RecursionError as error:
        msg = f"{place} cannot be encoded: {error}"
        raise PayloadError(msg) from error
    except (TypeError, ValueError) as error:
        refuse_mapped(value, place)
        for at, part in parts_of(value, place):
            if not inner_parts(part) and not _is_known(part):
                raise unstorable(part, at) from error
        msg = f"{place} cannot be encoded: {error}"
        raise PayloadError(msg) from error
    except Exception:  # of an object's own, such as one of SQLAlchemy's that cannot be loaded
        refuse_mapped(value, place)
        raise


def _of_base(value: Any) -> Any:
    for base, convert_to in _BASES.items():
        if isinstance(value, base):
            return convert_to(value)
    msg = f"JSON cannot represent a {type(value).__qualname__}"
    raise TypeError(msg)


def _is_known(part: Any) -> bool:
    try:
        msgspec.to_builtins(part, str_keys=True, enc_hook=_of_base)
    except (TypeError, ValueError):
        return False
    return True


def rebuilt(
    stored: Any, annotation: Any, place: str, read: Callable[[Any, Any], Any] | None = None
) -> Any:
    """Return the payload that a handler with this annotation would receive.

    :param stored: the encoded payload, as ``read`` expects it.
    :param place: the name of the payload in error messages.
    :param read: a callable of (stored, annotation) that decodes the payload; :func:`convert` by
        default.
    :raises PayloadError: if it cannot be decoded; the message names the place.
    """
    try:
        return (read or convert)(stored, annotation)
    # NameError: an annotation of a field cannot be resolved.
    except (PayloadError, TypeError, NameError) as error:
        at = _place_in(error.__context__)
        msg = f"{place}{at} would not come back from its text: {error}"
        raise PayloadError(msg) from error


def _place_in(error: BaseException | None) -> str:
    """Return the path in the payload that a msgspec or pydantic error names; "" if none."""
    if isinstance(error, msgspec.ValidationError):
        found = re.search(r" - at `\$(.*)`$", str(error))
        return found[1] if found else ""
    errors = getattr(error, "errors", None)
    if errors is None:
        return ""
    where = errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where)


def pydantic_text(value: Any, annotation: Any, place: str) -> str:
    """Return a payload as JSON from which pydantic can rebuild an equal one.

    :param place: the name of the payload in error messages.
    :raises PayloadError: if that is not possible; the message names what would change.
    """
    if mapped_class_in(annotation):
        refuse_mapped(value, place)
    adapter, problem = pydantic_adapter(annotation), None
    for by_alias in (True, False):
        try:
            # round_trip leaves out computed fields, which are not accepted as input.
            dumped = adapter.dump_json(value, round_trip=True, by_alias=by_alias, warnings=False)
            text: str = dumped.decode()
            require_equal(value, rebuilt(text, annotation, place, from_json), place)
        except PayloadError as error:
            problem = problem or error
        except Exception as error:  # user-defined serializers may raise anything
            refuse_mapped(value, place)
            problem = problem or PayloadError(f"{place} cannot be encoded: {error}")
        else:
            return text
    if writes_other_aliases(annotation):
        msg = f"{problem}; the model writes other aliases than it reads: set populate_by_name=True"
        raise PayloadError(msg) from problem
    raise cast("PayloadError", problem)


def from_json(text: str, annotation: Any) -> Any:
    """Return the payload decoded from JSON, for an annotation that contains a pydantic type.

    :raises PayloadError: if the text is not JSON or does not fit; the message names the place.
    """
    return _validated(annotation, "validate_json", text)


def convert(plain: Any, annotation: Any) -> Any:
    """Return plain values converted to the type of an annotation.

    :raises PayloadError: if they do not fit; the message names the place.
    """
    if mentions_pydantic(annotation):
        return _validated(annotation, "validate_python", plain)
    try:
        return msgspec.convert(plain, annotation, str_keys=True)
    except msgspec.ValidationError as error:
        problem = _ENUM_VALUE.sub(r"\1", str(error))
        msg = f"the payload does not fit {_name(annotation)}: {problem}"
        raise PayloadError(msg) from None  # the traceback is logged, and must not have the value


def _validated(annotation: Any, how: str, value: Any) -> Any:
    validate = getattr(pydantic_adapter(annotation), how)
    try:
        return validate(value)
    except ValueError as error:
        # A model whose input and output aliases differ is stored by its field names.
        with suppress(ValueError, TypeError):  # pydantic has these options since 2.11
            return validate(value, by_alias=False, by_name=True)
        msg = f"the payload does not fit {_name(annotation)}: {_problems(error)}"
        raise PayloadError(msg) from None  # as above


def _problems(error: ValueError) -> str:
    """Return what pydantic has found and where, without the values: payloads are not logged."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    found = errors(include_url=False, include_context=False, include_input=False)
    lines = [": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in found]
    more = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return "; ".join([*lines[:_MOST], *more])


def check_annotation(annotation: Any) -> None:
    """Check that payloads can be decoded to ``annotation``.

    :raises TypeError: if they cannot; the message names the unsupported type.
    """
    if mapped := mapped_class_in(annotation):
        msg = (
            f"{mapped.__qualname__} is a mapped class: take its id, and load the object in the "
            f"handler's session"
        )
        raise TypeError(msg)
    if mentions_pydantic(annotation):
        _check_pydantic(annotation)
        return
    try:
        info = msgspec.inspect.type_info(annotation)
    except NameError as error:
        msg = f"a field of {annotation!r} has an annotation that cannot be resolved: {error}"
        raise TypeError(msg) from error
    for unknown in _custom_types(info):
        msg = f"{unknown!r} is neither a JSON type nor a dataclass, TypedDict or pydantic model"
        raise TypeError(msg)


def _check_pydantic(annotation: Any) -> None:
    from pydantic.errors import PydanticSchemaGenerationError

    try:
        pydantic_adapter(annotation)
    except PydanticSchemaGenerationError as error:
        msg = f"pydantic does not support a type in {annotation!r}: {error.message}"
        raise TypeError(msg) from error


def _custom_types(info: Any) -> Iterator[Any]:
    """Yield the types in an annotation that JSON cannot represent, without those of fields."""
    if isinstance(info, msgspec.inspect.CustomType):
        yield info.cls
    for part in ("type", "item_type", "key_type", "value_type"):
        if isinstance(inner := getattr(info, part, None), msgspec.inspect.Type):
            yield from _custom_types(inner)
    for part in ("types", "item_types"):
        for inner in getattr(info, part, ()):
            yield from _custom_types(inner)


def plain_of_pydantic(value: Any, annotation: Any, place: str) -> Any:
    """Return the JSON of :func:`pydantic_text` as plain values."""
    return json.loads(pydantic_text(value, annotation, place))


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or repr(annotation)
