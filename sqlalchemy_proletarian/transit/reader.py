"""Transit decoding: everything that the Clojure library writes, and all unambiguous input it reads.

Repeated strings are written as codes of earlier strings: ``^0`` stands for the first cacheable one.
Whether a string is cacheable depends on its length in UTF-16 code units, and the numbering starts
again after 1,936 strings. A reader must count exactly as the writer does; otherwise, every later
code is decoded to the wrong string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NoReturn

from .scalars import ESCAPED, SCALARS, read_as
from .values import FrozenMap, Link, List, TaggedValue

MAP = "^ "

_CACHE_SIZE = 44 * 44
_SHORTEST_CACHED = 4


class _Tag(str):
    """The tag of a tagged value."""

    __slots__ = ()


class _Object(list[tuple[str, Any]]):
    """A JSON object, as a list of its pairs in the order in which they were written."""

    __slots__ = ()


def read(text: str, *, plain_keys: bool = False) -> Any:
    """Return the value decoded from ``text``.

    :param plain_keys: whether keywords and symbols become plain strings if they are keys of maps;
        False by default.
    :raises ValueError: if ``text`` is not Transit.
    :raises ArithmeticError: if a number or time is out of range.
    :raises RecursionError: if the value is nested too deeply.
    """
    raw = json.loads(text, object_pairs_hook=_Object, parse_constant=_no_constant)
    return _Reader(plain_keys=plain_keys).value(raw)


class _Reader:
    """Decodes one payload, in the order in which it was written, on which the codes depend.

    The parameter ``frozen`` of its methods says whether the decoded value must be hashable, because
    it is a key of a map or a member of a set.
    """

    def __init__(self, *, plain_keys: bool) -> None:
        self._plain_keys = plain_keys
        self._cache: list[Any] = []

    def value(self, raw: Any, *, frozen: bool = False) -> Any:
        if isinstance(raw, str):
            return _untagged(self._string(raw))
        if isinstance(raw, _Object):
            return self._object(raw, frozen=frozen)
        if isinstance(raw, list):
            return self._array(raw, frozen=frozen)
        return raw

    def _string(self, raw: str, *, is_key: bool = False) -> Any:
        if raw.startswith("^"):
            return self._of_code(raw)
        value = _parse(raw)
        if _utf16_length(raw) >= _SHORTEST_CACHED and (
            is_key or raw.startswith(("~:", "~$", "~#"))
        ):
            if len(self._cache) == _CACHE_SIZE:
                self._cache.clear()
            self._cache.append(value)
        return value

    def _of_code(self, code: str) -> Any:
        digits = [ord(character) - ord("0") for character in code[1:]]
        number = -1
        if 1 <= len(digits) <= 2 and all(0 <= digit < 44 for digit in digits):  # noqa: PLR2004
            number = digits[-1] + 44 * sum(digits[:-1])
        if not 0 <= number < len(self._cache):
            msg = f"the code {code!r:.80} refers to no string"
            raise ValueError(msg)
        return self._cache[number]

    def _array(self, raw: list[Any], *, frozen: bool) -> Any:
        if not raw or not isinstance(raw[0], str):
            return self._vector(raw, frozen=frozen)
        if raw[0] == MAP:
            return self._map(_pairs(raw[1:]), frozen=frozen)
        first = self._string(raw[0])
        if not isinstance(first, _Tag):
            return self._vector(raw[1:], first, frozen=frozen)
        if len(raw) != 2:  # noqa: PLR2004 - a pair
            msg = f"the tag {first!s:.80} has {len(raw) - 1} values instead of one"
            raise ValueError(msg)
        return self._tagged(first, raw[1], frozen=frozen)

    def _vector(self, raw: Sequence[Any], *first: Any, frozen: bool) -> Any:
        rest = (self.value(item, frozen=frozen) for item in raw)
        return (*first, *rest) if frozen else [*first, *rest]

    def _object(self, pairs: _Object, *, frozen: bool) -> Any:
        if len(pairs) != 1:
            return self._map(pairs, frozen=frozen)
        ((name, value),) = pairs
        key = self._string(name, is_key=True)
        if isinstance(key, _Tag):
            return self._tagged(key, value, frozen=frozen)
        return _of_pairs([(self._as_key(key), self.value(value, frozen=frozen))], frozen=frozen)

    def _map(self, pairs: Iterable[tuple[Any, Any]], *, frozen: bool) -> Any:
        read = ((self._key(key), self.value(value, frozen=frozen)) for key, value in pairs)
        return _of_pairs(read, frozen=frozen)

    def _key(self, raw: Any) -> Any:
        if isinstance(raw, str):
            return self._as_key(_untagged(self._string(raw, is_key=True)))
        return self.value(raw, frozen=True)

    def _as_key(self, value: Any) -> Any:
        return str(value) if self._plain_keys and isinstance(value, str) else value

    def _tagged(self, tag: _Tag, raw: Any, *, frozen: bool) -> Any:
        if tag == "'":
            return self.value(raw, frozen=frozen)
        if tag == "cmap":
            keyed = (
                (self._as_key(self.value(key, frozen=True)), self.value(value, frozen=frozen))
                for key, value in _pairs(_items(tag, raw))
            )
            return _of_pairs(keyed, frozen=frozen)
        if tag == "set":
            members = [self.value(item, frozen=True) for item in _items(tag, raw)]
            return _set_of(members, frozen=frozen)
        if tag == "list":
            return List(self.value(item, frozen=frozen) for item in _items(tag, raw))
        value = self.value(raw, frozen=frozen)
        if tag in _COMPOSITES:
            return read_as(tag, value, _COMPOSITES[tag])
        if tag in SCALARS:
            return _scalar(tag, value)
        return TaggedValue(str(tag), value)


def _items(tag: str, raw: Any) -> list[Any]:
    if isinstance(raw, list) and not isinstance(raw, _Object):
        return raw
    msg = f"the tag {tag} has the value {raw!r:.80} instead of an array"
    raise ValueError(msg)


def _pairs(raw: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(raw[::2], raw[1::2], strict=True)


def _of_pairs(pairs: Iterable[tuple[Any, Any]], *, frozen: bool) -> Any:
    made: dict[Any, Any] = {}
    for key, value in pairs:
        if key in made:
            msg = f"two keys of a map are equal in Python: {key!r:.80}"
            raise ValueError(msg)
        made[key] = value
    return FrozenMap(made) if frozen else made


def _set_of(members: list[Any], *, frozen: bool) -> Any:
    made = frozenset(members) if frozen else set(members)
    if len(made) != len(members):
        msg = f"two members of a set are equal in Python: {members!r:.80}"
        raise ValueError(msg)
    return made


def _untagged(value: Any) -> Any:
    if not isinstance(value, _Tag):
        return value
    msg = f"the tag {value!s:.80} has no value"
    raise ValueError(msg)


def _utf16_length(text: str) -> int:
    return len(text) if text.isascii() else len(text) + sum(c > "\uffff" for c in text)


def _parse(raw: str) -> Any:
    if len(raw) < 2 or raw[0] != "~":  # noqa: PLR2004 - the escape and one character
        return raw
    code, rest = raw[1], raw[2:]
    if code in ESCAPED:
        return raw[1:]
    if code == "#":
        return _Tag(rest)
    return _scalar(code, rest) if code in SCALARS else TaggedValue(code, rest)


def _scalar(tag: str, value: Any) -> Any:
    if isinstance(value, str):
        return read_as(tag, value, SCALARS[tag])
    msg = f"the tag {tag} has the value {value!r:.80} instead of a string"
    raise ValueError(msg)


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _ratio(parts: Sequence[int]) -> Fraction:
    numerator, denominator = parts
    return Fraction(numerator, denominator)


def _link(parts: Mapping[str, Any]) -> Link:
    return Link(**{str(name): part for name, part in parts.items()})


_COMPOSITES: dict[str, Callable[[Any], Any]] = {"ratio": _ratio, "link": _link}

GROUND_TAGS = frozenset(
    {*SCALARS, *_COMPOSITES, *ESCAPED, "'", "#", "s", "array", "map", "set", "list", "cmap"}
)
"""Tags that Transit defines."""
