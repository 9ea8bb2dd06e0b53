"""What an annotation of a payload mentions, as deep as its fields go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, wraps
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sqlalchemy import inspect as sa_inspect

T = TypeVar("T")


def _remembered(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Remember what a function says of an annotation, if it can be a key."""
    cached = lru_cache(maxsize=1024)(function)

    @wraps(function)
    def look(annotation: Any) -> T:
        try:
            return cached(annotation)
        except TypeError:  # such as Annotated[int, []]
            return function(annotation)

    return look


def is_pydantic(kind: Any) -> bool:
    """Return whether pydantic made a type: a model, or a dataclass of its own."""
    return hasattr(kind, "__pydantic_validator__")


def is_mapped(kind: Any) -> bool:
    """Return whether SQLAlchemy maps a class to a table, as it does with a SQLModel."""
    return isinstance(kind, type) and sa_inspect(kind, raiseerr=False) is not None


@_remembered
def mentions_pydantic(annotation: Any) -> bool:
    """Return whether any type in an annotation is pydantic's."""
    return any(map(is_pydantic, _types_in(annotation)))


@_remembered
def mapped_class_in(annotation: Any) -> type[Any] | None:
    """Return a mapped class that an annotation mentions, if there is one."""
    return next(filter(is_mapped, _types_in(annotation)), None)


@_remembered
def has_typed_keys(annotation: Any) -> bool:
    """Return whether an annotation mentions mappings whose keys are no text."""
    return any(
        isinstance(origin := get_origin(kind), type)
        and issubclass(origin, Mapping)
        and get_args(kind)[:1] not in ((str,), (Any,))
        for kind in _types_in(annotation)
    )


@_remembered
def pydantic_adapter(annotation: Any) -> Any:
    """Return what validates and dumps values of a type that mentions one of pydantic's."""
    # Reached only for types that pydantic made, so it is installed.
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yield an annotation, and those that it is made of."""
    ahead, seen = [annotation], set[int]()
    while ahead:
        kind = ahead.pop()
        if id(kind) in seen:
            continue
        seen.add(id(kind))
        yield kind
        ahead += get_args(kind)
        ahead += (getattr(kind, "__supertype__", None) and [kind.__supertype__]) or []
        if isinstance(kind, type) and not is_mapped(kind):
            try:
                ahead += get_type_hints(kind).values()
            except Exception:  # names that are known only where the class was made
                ahead += (hint for hint in getattr(kind, "__annotations__", {}).values())
