"""Inspection of payload annotations, including the fields of nested types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache, wraps
from types import NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec
from sqlalchemy import inspect as sa_inspect

T = TypeVar("T")

_PLAIN = (Any, object, None, NoneType, bool, int, str, dict, list)


def _remembered(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Cache a function of an annotation. Unhashable annotations are not cached."""
    cached = lru_cache(maxsize=1024)(function)

    @wraps(function)
    def look(annotation: Any) -> T:
        try:
            return cached(annotation)
        except TypeError:  # unhashable, such as Annotated[int, []]
            return function(annotation)

    return look


def is_pydantic(kind: Any) -> bool:
    """Return whether a type is a pydantic model or a pydantic dataclass."""
    return hasattr(kind, "__pydantic_validator__")


def is_mapped(kind: Any) -> bool:
    """Return whether a class is mapped by SQLAlchemy, as SQLModel tables are."""
    return isinstance(kind, type) and sa_inspect(kind, raiseerr=False) is not None


@_remembered
def mentions_pydantic(annotation: Any) -> bool:
    """Return whether an annotation contains a pydantic type."""
    return any(map(is_pydantic, _types_in(annotation)))


@_remembered
def mapped_class_in(annotation: Any) -> type[Any] | None:
    """Return a mapped class that an annotation contains, or None if there is none."""
    return next(filter(is_mapped, _types_in(annotation)), None)


@_remembered
def is_typed(kind: type[Any]) -> bool:
    """Return whether objects can be rebuilt from the fields that their class declares.

    This holds for pydantic models, dataclasses, msgspec Structs and attrs classes, unless mapped.
    """
    return not is_mapped(kind) and (
        is_pydantic(kind)
        or is_dataclass(kind)
        or issubclass(kind, msgspec.Struct)
        or hasattr(kind, "__attrs_attrs__")
    )


@_remembered
def is_plain(annotation: Any) -> bool:
    """Return whether an annotation contains only types that JSON preserves.

    ``float`` is not one of them, because the value may be an integer that no float equals.
    """
    parts = get_args(annotation)
    if parts and (origin := get_origin(annotation)) in (dict, list, Union, UnionType):
        return (origin is not dict or parts[0] in (str, Any)) and all(map(is_plain, parts))
    return any(annotation is plain for plain in _PLAIN)


@_remembered
def pydantic_adapter(annotation: Any) -> Any:
    """Return the ``TypeAdapter`` of an annotation that contains a pydantic type."""
    # pydantic is installed, because this is called only for pydantic types.
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def writes_other_aliases(annotation: Any) -> bool:
    """Return whether a pydantic model in an annotation writes other aliases than it reads."""
    return any(
        field.serialization_alias != field.validation_alias
        for kind in _types_in(annotation)
        if is_pydantic(kind) and not is_dataclass(kind)
        for field in kind.model_fields.values()
    )


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and all annotations inside it."""
    ahead, seen = [annotation], dict[int, Any]()
    while ahead:
        kind = ahead.pop()
        if id(kind) in seen or get_origin(kind) in (ClassVar, type):
            continue
        seen[id(kind)] = kind  # the reference keeps the id from being reused
        yield kind
        ahead += get_args(kind)
        for stands_for in ("__origin__", "__supertype__", "__value__"):
            if (meant := getattr(kind, stands_for, None)) is not None:
                ahead.append(meant)
        if isinstance(kind, type):
            ahead += _types_of_fields(kind)


def _types_of_fields(kind: type[Any]) -> Iterable[Any]:
    if is_pydantic(kind) and not is_dataclass(kind):
        return [field.annotation for field in kind.model_fields.values()]
    if not (is_typed(kind) or is_typeddict(kind) or hasattr(kind, "_field_defaults")):
        return ()
    try:
        hints = get_type_hints(kind)
    except Exception:  # names that are defined only where the class was defined
        hints = getattr(kind, "__annotations__", {})
    names = fields_of(kind)
    return [hint for name, hint in hints.items() if not names or name in names]


@_remembered
def fields_of(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields that a class declares; an empty tuple if it has none."""
    if is_mapped(kind):
        return ()
    if is_dataclass(kind):
        return tuple(field.name for field in fields(kind) if field.init or field.compare)
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if is_pydantic(kind):
        return tuple(kind.model_fields)
    attributes = getattr(kind, "__attrs_attrs__", ())
    return tuple(field.name for field in attributes if field.init or field.eq)
