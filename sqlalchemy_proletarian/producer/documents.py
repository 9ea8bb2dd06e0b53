"""Insert many rows with one statement, in which each column is one text that the server splits.

This works with every driver, and the driver converts one parameter instead of thousands. Values
that all rows share are parameters of their own. In contrast to COPY, it is an INSERT: row-level
security, rules, events and error messages are those of an INSERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Insert,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
)

from .facts import facts_of
from .rows import NewRows

_SEPARATOR = "\x1f"
"""JSON contains it only as an escape."""


def insert_texts(connection: Connection, job_model: type[Any], rows: NewRows) -> bool:
    """Insert the rows, and return whether that was possible; if it was not, nothing is sent."""
    facts = facts_of(job_model)
    is_plain = facts.is_plain and facts.has_plain_types
    texts = rows.texts() if is_plain and isinstance(facts.table.c.headers.type, JSON) else None
    if texts is None:
        return False
    varying, same = texts
    given = {_all(name): _SEPARATOR.join(values) for name, values in varying.items()}
    # The server splits an empty text into no value, and not into one that is empty.
    if any(not text or text.count(_SEPARATOR) != len(rows) - 1 for text in given.values()):
        return False
    connection.execute(_statement(facts.table, tuple(varying), tuple(same)), given | same)
    return True


@lru_cache
def _statement(table: Table, varying: Sequence[str], same: Sequence[str]) -> Insert:
    texts = (
        func.unnest(
            *(
                func.string_to_array(bindparam(_all(name), type_=Text), func.chr(ord(_SEPARATOR)))
                for name in varying
            )
        )
        .table_valued(*(column(name, Text) for name in varying), name="given")
        .render_derived()
    )
    return insert(table).from_select(
        [*varying, *same],
        select(
            *(_value(texts.c[name], table.c[name].type) for name in varying),
            *(bindparam(name, type_=table.c[name].type) for name in same),
        ),
        include_defaults=False,
    )


def _value(text: ColumnElement[str], type_: Any) -> ColumnElement[Any]:
    # A row without headers has an empty text.
    return cast(func.nullif(text, "") if isinstance(type_, JSON) else text, type_)


def _all(name: str) -> str:
    return f"all_{name}"
