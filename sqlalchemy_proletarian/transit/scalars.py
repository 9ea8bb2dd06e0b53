"""Transit scalars, which are strings of a sigil that names the type and the value as text."""

from __future__ import annotations

import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from .values import URI, Char, Keyword, Symbol

ESCAPED = ("~", "^", "`")
SIGILS: dict[type[Any], str] = {Keyword: "~:", Symbol: "~$", Char: "~c", URI: "~r"}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LONG = 2**63
_SCALE = 2**31
_UUID_LENGTH = 36
_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class RefusedError(Exception):
    """A value that cannot be encoded. ``path`` contains the steps to it, innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []

    def __str__(self) -> str:
        return f"payload{''.join(reversed(self.path))} {self.args[0]}"


def scalar_text(value: Any) -> str | None:
    """Return a scalar as a string with its sigil, or None if ``value`` is not such a scalar.

    :raises RefusedError: if Transit or the JVM cannot represent the value.
    """
    if isinstance(value, int):
        return f"~i{int(value)}" if -_LONG <= value < _LONG else big_integer(value)
    if isinstance(value, float):
        return "~zNaN" if math.isnan(value) else "~zINF" if value > 0 else "~z-INF"
    if isinstance(value, datetime):
        return f"~m{_milliseconds(value)}"
    if isinstance(value, UUID):
        return f"~u{value}"
    if isinstance(value, Decimal):
        return f"~f{_decimal(value)}"
    if isinstance(value, bytes):
        return f"~b{b64encode(value).decode()}"
    return None


def escaped(text: str) -> str:
    """Return a string escaped, so that its first character is not read as a sigil.

    :raises RefusedError: if it contains a lone surrogate.
    """
    return storable_text(f"~{text}" if text.startswith(ESCAPED) else text)


def any_text(text: str) -> str:
    """Return the encoded form of a string or of a ``str`` subclass with a sigil.

    :raises RefusedError: if it contains a lone surrogate.
    """
    sigil = SIGILS.get(type(text))
    plain = str.__str__(text)
    return escaped(plain) if sigil is None else sigil + storable_text(plain)


def storable_text(text: str) -> str:
    """Return ``text`` unchanged if the JVM can represent it.

    :raises RefusedError: if it contains a lone surrogate.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            msg = f"has a lone surrogate in it, which Clojure reads as '?': {text!r:.80}"
            raise RefusedError(msg) from error
    return text


def big_integer(number: int) -> str:
    """Return the encoded form of an integer of any size, a ``bigint`` in Clojure.

    :raises RefusedError: if it exceeds Python's limit for str conversion.
    """
    try:
        return f"~n{int(number)}"
    except ValueError as error:
        msg = f"cannot be encoded: {error}"
        raise RefusedError(msg) from error


def _milliseconds(time: datetime) -> int:
    if time.utcoffset() is None:
        msg = f"is a datetime without a time zone: {time!r:.80}"
        raise RefusedError(msg)
    whole, rest = divmod(time - _EPOCH, _MILLISECOND)
    if rest:
        msg = (
            f"is a datetime with microseconds ({time!r:.80}), but Transit supports only "
            f"milliseconds: truncate or round it, as in "
            f"time.replace(microsecond=time.microsecond // 1000 * 1000)"
        )
        raise RefusedError(msg)
    return whole


def _decimal(number: Decimal) -> Decimal:
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or not -_SCALE < exponent < _SCALE:
        msg = f"is a Decimal that the JVM does not support: {number!r:.80}"
        raise RefusedError(msg)
    return number


def _matched(pattern: re.Pattern[str], make: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return ``make`` restricted to texts that match, as Python accepts more forms than the JVM."""

    def read_matched(text: str) -> Any:
        if not pattern.fullmatch(text):
            raise ValueError(text)
        return make(text)

    return read_matched


def _instant(text: str) -> datetime:
    return _EPOCH + timedelta(milliseconds=_read_integer(text))


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(text)
    return time.astimezone(UTC)


def _uuid(text: str) -> UUID:
    if len(text) != _UUID_LENGTH:
        raise ValueError(text)
    return UUID(text)


_read_integer = _matched(_INTEGER, int)

SCALARS: dict[str, Callable[[str], Any]] = {
    ":": Keyword,
    "$": Symbol,
    "c": Char,
    "r": URI,
    "i": _read_integer,
    "n": _read_integer,
    "d": _matched(_DECIMAL, float),
    "f": _matched(_DECIMAL, Decimal),
    "m": _instant,
    "t": _time,
    "u": _uuid,
    "b": lambda text: b64decode(text, validate=True),
    "?": {"t": True, "f": False}.__getitem__,
    "_": {"": None}.__getitem__,
    "z": {"NaN": math.nan, "INF": math.inf, "-INF": -math.inf}.__getitem__,
}


def read_as(tag: str, value: Any, reader: Callable[[Any], Any]) -> Any:
    """Return ``value`` decoded by ``reader``.

    :param tag: the tag of the value, for the error message.
    :raises ValueError: if the value cannot be decoded.
    """
    try:
        return reader(value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        msg = f"{value!r:.80} cannot be read as ~{tag}"
        raise ValueError(msg) from error
