"""Lists of values as array parameters, one parameter per column.

The text of a statement is then the same for any number of rows, so SQLAlchemy compiles it once and
the server plans it once.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, ColumnElement, bindparam, cast, column, func
from sqlalchemy.sql.selectable import TableValuedAlias


def array(parameter: str, type_: Any) -> ColumnElement[Any]:
    """Return a parameter that is an array; psycopg2 says of none what it is an array of."""
    return cast(bindparam(parameter, type_=ARRAY(type_)), ARRAY(type_))


def arrays(name: str, **columns: tuple[str, Any]) -> TableValuedAlias:
    """Return array parameters as a table: ``column_name=(parameter, type)``."""
    parameters = [array(parameter, type_) for parameter, type_ in columns.values()]
    named = [column(title, type_) for title, (_, type_) in columns.items()]
    return func.unnest(*parameters).table_valued(*named, name=name).render_derived()
