"""Transit types without an equivalent in Python: subclasses of a similar type, or dataclasses.

A keyword is a subclass of ``str``. Therefore ``payload["to"]`` finds ``:to``, ``:urgent`` equals
``"urgent"``, and a decoded keyword is encoded as a keyword again.
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
    """A Clojure keyword without its colon: ``Keyword("my.app/urgent")`` is ``:my.app/urgent``.

    .. versionadded:: 0.1
    """

    __slots__ = ()


class Symbol(_Text):
    """A Clojure symbol.

    .. versionadded:: 0.1
    """

    __slots__ = ()


class Char(_Text):
    r"""A JVM character, such as ``\a``, up to U+FFFF.

    :param character: the character.
    :raises ValueError: if the argument is not one character up to U+FFFF.

    .. versionadded:: 0.1
    """

    __slots__ = ()

    def __new__(cls, character: str) -> Self:  # noqa: D102 - see the class
        if len(character) != 1 or character > "\uffff":
            msg = f"a Char must be one character up to U+FFFF, not {character!r:.80}"
            raise ValueError(msg)
        return super().__new__(cls, character)


class URI(_Text):
    """A URI. Its syntax is not checked.

    .. versionadded:: 0.1
    """

    __slots__ = ()


class List(tuple[Any, ...]):
    """A Clojure list or lazy sequence. A vector is a Python list or tuple.

    .. versionadded:: 0.1
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"List({list(self)!r})"


class FrozenMap(Mapping[Any, Any]):
    """A hashable map, used as a key of another map or as a member of a set.

    It equals a dict with the same items.

    :param items: the mapping to copy. Its values must be hashable for the map to be hashable.

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
    """A value with a tag that Transit does not define: a type of the application.

    :param tag: the tag, a nonempty string without a meaning in Transit.
    :param value: the tagged value.

    .. versionadded:: 0.1
    """

    tag: str
    value: Any


@dataclass(frozen=True, slots=True)
class Link:
    """A hyperlink, a type of Transit.

    :param href: the target.
    :param rel: the relation, a string.
    :param name: the name, or None, the default.
    :param prompt: the prompt, or None, the default.
    :param render: ``"link"``, ``"image"`` or None, the default.

    .. versionadded:: 0.1
    """

    href: URI
    rel: str
    name: str | None = None
    prompt: str | None = None
    render: str | None = None
