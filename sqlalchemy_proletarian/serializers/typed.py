"""Payloads of a type that says what to rebuild: into plain values, and back by an annotation.

pydantic does it where an annotation mentions a type of its own, otherwise msgspec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

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
"""What an object of a subclass is as one of the class itself, which msgspec asks for."""


def built_ins(value: Any, place: str) -> Any:
    """Return a payload as plain values, by the types of what is in it.

    :raises PayloadError: if something in it is of no known type; the message names its place.
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


def _of_base(value: Any) -> Any:
    for base, convert_to in _BASES.items():
        if isinstance(value, base):
            return convert_to(value)
    msg = f"a {type(value).__qualname__} has no form in JSON"
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
    """Return what a handler with this annotation would get.

    :param read: makes it of what is stored, with the annotation; by default :func:`convert`.
    :raises PayloadError: if that is nothing.
    """
    try:
        return (read or convert)(stored, annotation)
    except (PayloadError, TypeError, NameError) as error:  # the last: of a field's annotation
        at = _place_in(error.__cause__)
        msg = f"{place}{at} would not come back from its text: {error}"
        raise PayloadError(msg) from error


def _place_in(error: BaseException | None) -> str:
    """Return where in a payload an error of msgspec's or pydantic's is."""
    if isinstance(error, msgspec.ValidationError):
        found = re.search(r" - at `\$(.*)`$", str(error))
        return found[1] if found else ""
    errors = getattr(error, "errors", None)
    if errors is None:
        return ""
    where = errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where)


def pydantic_text(value: Any, annotation: Any, place: str) -> str:
    """Return the JSON that pydantic makes of a payload, and reads as an equal one.

    :raises PayloadError: if there is none; the message names what would change.
    """
    if mapped_class_in(annotation):
        refuse_mapped(value, place)
    adapter, problem = pydantic_adapter(annotation), None
    for by_alias in (True, False):
        try:
            # What "round_trip" leaves out is computed, and no input.
            dumped = adapter.dump_json(value, round_trip=True, by_alias=by_alias, warnings=False)
            text: str = dumped.decode()
            require_equal(value, rebuilt(text, annotation, place, from_json), place)
        except PayloadError as error:
            problem = problem or error
        except Exception as error:  # what serializers raise that users write, too
            refuse_mapped(value, place)
            problem = problem or PayloadError(f"{place} cannot be encoded: {error}")
        else:
            return text
    if writes_other_aliases(annotation):
        msg = f"{problem}; its model writes other aliases than it reads: set populate_by_name=True"
        raise PayloadError(msg) from problem
    raise cast("PayloadError", problem)


def from_json(text: str, annotation: Any) -> Any:
    """Return the payload that JSON stands for, where its annotation mentions pydantic.

    :raises PayloadError: if it is no JSON or does not fit; the message names the place.
    """
    return _validated(annotation, "validate_json", text)


def convert(plain: Any, annotation: Any) -> Any:
    """Return plain values as the type that a handler's annotation asks for.

    :raises PayloadError: if they do not fit; the message names the place.
    """
    if mentions_pydantic(annotation):
        return _validated(annotation, "validate_python", plain)
    try:
        return msgspec.convert(plain, annotation, str_keys=True)
    except msgspec.ValidationError as error:
        msg = f"the payload does not fit {_name(annotation)}: {error}"
        raise PayloadError(msg) from error


def _validated(annotation: Any, how: str, value: Any) -> Any:
    validate = getattr(pydantic_adapter(annotation), how)
    try:
        return validate(value)
    except ValueError as error:
        # Where the aliases of a model differ for input and output, it is stored by its names.
        with suppress(ValueError, TypeError):  # pydantic knows these options since 2.11
            return validate(value, by_alias=False, by_name=True)
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
        msg = f"pydantic does not know a type in {annotation!r}: {error.message}"
        raise TypeError(msg) from error


def _custom_types(info: Any) -> Iterator[Any]:
    """Yield the types without a form in JSON that an annotation itself is made of."""
    if isinstance(info, msgspec.inspect.CustomType):
        yield info.cls
    for part in ("type", "item_type", "key_type", "value_type"):
        if isinstance(inner := getattr(info, part, None), msgspec.inspect.Type):
            yield from _custom_types(inner)
    for part in ("types", "item_types"):
        for inner in getattr(info, part, ()):
            yield from _custom_types(inner)


def plain_of_pydantic(value: Any, annotation: Any, place: str) -> Any:
    """Return what :func:`pydantic_text` says as plain values."""
    return json.loads(pydantic_text(value, annotation, place))


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or repr(annotation)
