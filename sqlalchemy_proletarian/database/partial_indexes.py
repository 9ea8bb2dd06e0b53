"""The conditions of partial indexes: in the models, and in a database."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import Dialect, Index, Inspector, Table

_CAST: Final = re.compile(r"::[a-z ]*[a-z]")


def wanted_condition(dialect: Dialect, index: Index) -> str:
    """Return the condition of an index of the models; "" if it has none."""
    where = index.dialect_options[dialect.name].get("where")
    if where is None:
        return ""
    compiler: Any = dialect.statement_compiler(dialect, None)
    return _plain(compiler.process(where, include_table=False, literal_binds=True))


def found_conditions(inspector: Inspector, table: Table) -> dict[str | None, str]:
    """Return the conditions of the indexes of a table in the database, by their names."""
    option = f"{inspector.dialect.name}_where"
    return {
        index["name"]: _plain(index.get("dialect_options", {}).get(option))
        for index in inspector.get_indexes(table.name, schema=table.schema)
    }


def _plain(condition: Any) -> str:
    """Return a condition without the parentheses and casts that the database adds."""
    if condition is None:
        return ""
    without_casts = _CAST.sub("", str(condition))
    return " ".join(without_casts.replace("(", " ").replace(")", " ").split())
