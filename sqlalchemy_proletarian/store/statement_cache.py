"""Statements that are built and compiled once for each pair of tables, and not for each worker.

Building the statements of a store takes about 20 ms, and compiling them as long again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from threading import Lock
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import ClauseElement, Dialect, Executable, Table

from ..models.job_classes import job_table

_P = ParamSpec("_P")
_T = TypeVar("_T")

_KEPT: Final = 64
"""How many results of each function are kept."""

_compiled: WeakKeyDictionary[Executable, set[type[Dialect]]] = WeakKeyDictionary()
_lock = Lock()


def built_once(build: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a function that builds a statement: it is called once for the same arguments.

    A table that has more columns than before is another argument.
    """

    @lru_cache(maxsize=_KEPT)
    def kept(_columns: Any, *args: Any, **options: Any) -> _T:
        return build(*args, **options)

    keep: Callable[..., _T] = kept

    @wraps(build)
    def found(*args: _P.args, **options: _P.kwargs) -> _T:
        return keep(tuple(map(_columns, args)), *args, **options)

    return found


def _columns(value: Any) -> tuple[Any, ...]:
    """Return the columns of a table, of several, or of a job model: they may increase in number."""
    if isinstance(value, Table):
        return tuple(value.c)
    if isinstance(value, tuple):
        return tuple(map(_columns, value))
    return tuple(job_table(value).c) if isinstance(value, type) else ()


def compile_once(statement: object, dialect: Dialect) -> None:
    """Compile a statement in the thread of the caller, if it was not compiled before.

    SQLAlchemy caches parts of the compilation in the statement. CPython 3.11 has crashed where
    several threads did that at the same time.
    """
    if not (isinstance(statement, Executable) and isinstance(statement, ClauseElement)):
        return
    with _lock:
        dialects = _compiled.setdefault(statement, set())
        if type(dialect) not in dialects:
            statement.compile(dialect=dialect)
            dialects.add(type(dialect))
