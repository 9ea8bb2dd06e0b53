"""What a SQL statement changes of the state of its connection.

A statement is matched by regular expressions. It may be taken for one that changes something though
it does not, but not the other way round.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

_HINT: Final = re.compile(
    r"set|discard|\bdo\b|\bcall\b|listen|\buse\b|deallocate|pragma|\battach|prepare|\bhold\b|\btemp|advisory|get_lock|@",
    re.IGNORECASE,
)
"""Matches every statement that changes the state of a connection, and few others."""

_COMMENT: Final = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)

_SET: Final = re.compile(
    r"set\s+(?:(?P<scope>local|session)\s+)?"
    r"(?:(?P<role>role)\b|(?P<zone>time\s+zone)\b|(?P<schema>schema)\b|(?P<name>[\w.]+)\s*(?:=|\bto\b))",
    re.IGNORECASE,
)
_NAMES: Final = {"role": "role", "zone": "timezone", "schema": "search_path"}

_SET_CONFIG: Final = re.compile(
    r"\bset_config\s*\(\s*(?:'(?P<name>[^']+)'|%\((?P<key>\w+)\)s|\$(?P<number>\d+)|(?P<other>.))",
    re.IGNORECASE,
)

_LASTING: Final = re.compile(
    r"(?:set|reset|discard|do|call|listen|unlisten|prepare|deallocate|use|pragma|attach|detach)\b"
    r"|declare\b.*\bwith\s+hold\b"
    r"|create\s+(?:local\s+|global\s+|or\s+replace\s+)*temp"
    r"|.*\b(?:pg_(?:try_)?advisory_lock(?:_shared)?|get_lock)\s*\("
    r"|.*(?:@\w+\s*:=|\binto\s+@)",
    re.IGNORECASE | re.DOTALL,
)


class Change(NamedTuple):
    """What a statement changes.

    ``names`` are the settings that can be restored; ``lasting`` is whether the statement changes
    anything else, or changes a setting for longer than the transaction.
    """

    names: frozenset[str]
    lasting: bool


NO_CHANGE: Final = Change(frozenset(), lasting=False)


def change_of(statement: str, parameters: Any, *, settings: bool) -> Change:
    """Return what a statement changes in the state of its connection.

    :param parameters: the parameters as passed to the driver.
    :param settings: whether the database has settings that can be local to a transaction.
    """
    if _HINT.search(statement) is None:
        return NO_CHANGE
    names: set[str] = set()
    lasting = False
    for part in _COMMENT.sub(" ", statement).split(";"):
        text = part.strip()
        found = _SET.match(text) if settings else None
        if found is not None:
            words = (word for group, word in _NAMES.items() if found[group])
            names.add(next(words, (found["name"] or "").lower()))
            lasting = lasting or (found["scope"] or "").lower() != "local"
        elif _LASTING.match(text):
            lasting = True
    if settings:
        for call in _SET_CONFIG.finditer(statement):
            name = call["name"] or _parameter(call, parameters)
            if name is None:
                lasting = True
            else:
                names.add(name.lower())
            lasting = lasting or not _is_local(statement, parameters)
    return Change(frozenset(names), lasting)


def _parameter(call: re.Match[str], parameters: Any) -> str | None:
    value: Any = None
    if call["key"] and isinstance(parameters, dict):
        value = parameters.get(call["key"])
    elif call["number"] and isinstance(parameters, tuple | list):
        place = int(call["number"]) - 1
        value = parameters[place] if place < len(parameters) else None
    return value if isinstance(value, str) else None


def _is_local(statement: str, parameters: Any) -> bool:
    """Return whether all calls of ``set_config`` are local to the transaction."""
    given = parameters.values() if isinstance(parameters, dict) else parameters or ()
    flags = {value for value in given if isinstance(value, bool)}
    words = {word.lower() for word in re.findall(r"\b(?:true|false)\b", statement, re.IGNORECASE)}
    return (flags | words) in ({True}, {"true"}, {True, "true"})
