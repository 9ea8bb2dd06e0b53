"""What Transit has and Python has not: each is a subclass of what is nearest to it, or a value.

A keyword is a ``str`` that knows it is one. So ``payload["to"]`` finds ``:to``, ``:urgent`` equals
``"urgent"``, and what was read is written back as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self


class _Text(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str.__repr__(self)})"


class Keyword(_Text):
    """A Clojure keyword, without its colon: ``Keyword("my.app/urgent")`` is ``:my.app/urgent``.

    .. versionadded:: 0.1
    """

    __slots__ = ()


class Symbol(_Text):
    """A Clojure symbol.

    .. versionadded:: 0.1
    """

    __slots__ = ()


class Char(_Text):
    r"""A character of the JVM, as ``\a``: what lies beyond U+FFFF is two of them, and none.

    .. versionadded:: 0.1
    """

    __slots__ = ()

    def __new__(cls, character: str) -> Self:  # noqa: D102 - the class says it
        if len(character) != 1 or character > "\uffff":
            msg = f"a Char is one character up to U+FFFF, not {character!r:.80}"
            raise ValueError(msg)
        return super().__new__(cls, character)


class URI(_Text):
    """A URI; nothing checks that it is one, on either side.

    .. versionadded:: 0.1
    """

    __slots__ = ()


class List(tuple[Any, ...]):
    """A Clojure list or lazy sequence; a vector is a Python list, or a tuple.

    .. versionadded:: 0.1
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"List({list(self)!r})"


class FrozenMap(Mapping[Any, Any]):
    """A map that is a key of another, or a member of a set; it equals the dict with its items.

    .. versionadded:: 0.1
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[Any, Any]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenMap({self._items!r})"


@dataclass(frozen=True, slots=True)
class TaggedValue:
    """A value whose tag Transit does not know: an application's own type.

    .. versionadded:: 0.1
    """

    tag: str
    value: Any


@dataclass(frozen=True, slots=True)
class Link:
    """A hyperlink, as Transit has it.

    :param render: ``"link"``, ``"image"`` or None.

    .. versionadded:: 0.1
    """

    href: URI
    rel: str
    name: str | None = None
    prompt: str | None = None
    render: str | None = None
