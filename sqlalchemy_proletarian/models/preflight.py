"""Checking the tables and the role's privileges before a worker starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Enum,
    Integer,
    Numeric,
    Select,
    String,
    TableClause,
    Text,
    Uuid,
    and_,
    cast,
    column,
    exists,
    func,
    inspect,
    not_,
    null,
    or_,
    select,
    table,
)
from sqlalchemy.engine.interfaces import ReflectedColumn

from ..database.arrays import arrays
from ..database.column_types import DateTimeUTC
from ..database.dialects import database_of
from .mixins import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin
from .recurring import RecurringJobMixin
from .requirements import (
    TableUse,
    missing_grants,
    privilege_missing,
    read_only,
    role_name,
    schema_mismatch,
    tables_missing,
)

_LIBRARY_COLUMNS = frozenset(
    name
    for mixin in (
        JobMixin,
        ArchivedJobMixin,
        RunningJobMixin,
        PausedQueueMixin,
        RecurringJobMixin,
    )
    for base in mixin.__mro__
    for name in getattr(base, "__annotations__", ())
)


def check_tables(connection: Connection, uses: Sequence[TableUse]) -> None:
    """Check all tables, on PostgreSQL in one round trip.

    :raises DatabaseNotReadyError: if the statements would fail. The message names every problem of
        the first kind found: missing tables, then columns that differ, then missing privileges.
    """
    if not database_of(connection.dialect).catalogs:
        _check_columns(connection, uses)
        return
    rows = connection.execute(
        _CATALOG_QUERY,
        {
            "numbers": list(range(len(uses))),
            "schemas": [connection.schema_for_object(use.table) for use in uses],
            "names": [use.table.name for use in uses],
        },
    ).all()
    if rows[0].is_read_only:
        what = "the server is a standby" if rows[0].is_standby else "transactions are read-only"
        raise read_only(what)
    role = role_name(connection, rows[0].role)
    missing: list[str] = []
    differences: list[str] = []
    lacking: list[str] = []
    grants: list[str] = []
    for number, use in enumerate(uses):
        found = [row for row in rows if row.number == number]
        there = found[0]
        if not there.exists:
            missing.append(f"{use.table} does not exist")
            continue
        differences += _differences(connection, use, found)
        lacks = [name for name in use.privileges if not getattr(there, f"may_{name.lower()}")]
        if lacks:
            lacking.append(f"{', '.join(lacks)} on {use.table}")
        if not there.may_usage:
            lacking.append(f"USAGE on the schema {there.schema}")
        grants += missing_grants(use._replace(privileges=lacks), role, usage=not there.may_usage)
    if missing:
        raise tables_missing("; ".join(missing))
    if differences:
        raise schema_mismatch("; ".join(differences))
    if grants:
        what = f"the role {role} lacks {'; '.join(dict.fromkeys(lacking))}"
        raise privilege_missing(what, grants)


def _check_columns(connection: Connection, uses: Sequence[TableUse]) -> None:
    """Check tables and columns; a missing privilege is explained when a statement fails."""
    inspector = inspect(connection)
    missing: list[str] = []
    differences: list[str] = []
    for use in uses:
        schema = connection.schema_for_object(use.table)
        if not inspector.has_table(use.table.name, schema=schema):
            missing.append(f"{use.table.name if schema is None else use.table} does not exist")
            continue
        there = {column["name"]: column for column in inspector.get_columns(use.table.name, schema)}
        differences += [
            f"column {wanted.name} of {use.table} is missing"
            for wanted in use.table.c
            if there.pop(wanted.name, None) is None
        ]
        differences += [
            f"column {name} of {use.table} takes no NULL, and gets no value"
            for name, column in there.items()
            if use.filled is not None and name not in use.filled and _requires_value(column)
        ]
    if missing:
        raise tables_missing("; ".join(missing))
    if differences:
        raise schema_mismatch("; ".join(differences))


def _requires_value(column: ReflectedColumn) -> bool:
    filled = column.get("autoincrement") is True or column.get("computed")
    return not (column["nullable"] or column["default"] is not None or filled)


def _differences(connection: Connection, use: TableUse, found: Sequence[Any]) -> Iterator[str]:
    there = {row.column: row for row in found}
    for wanted in use.table.c:
        row = there.pop(wanted.name, None)
        if row is None:
            yield f"column {wanted.name} of {use.table} is missing"
        elif wanted.name in _LIBRARY_COLUMNS and _type_category(wanted.type) not in (
            None,
            row.category,
            row.type,
        ):
            should = wanted.type.compile(connection.dialect)
            yield f"column {wanted.name} of {use.table} is {row.type}, should be {should}"
    for name, row in there.items():
        if use.filled is not None and name not in use.filled and row.requires_value:
            yield f"column {name} of {use.table} takes no NULL, and gets no value"


def _type_category(type_: Any) -> str | None:
    """Return PostgreSQL's category, or name, of the types that fit; None if any type does."""
    if isinstance(type_, String) and not isinstance(type_, Enum):
        return "S"
    if isinstance(type_, Integer | Numeric):
        return "N"
    if isinstance(type_, DateTime | DateTimeUTC):
        return "D"
    return "uuid" if isinstance(type_, Uuid) and type_.native_uuid else None


def _catalog_query() -> Select[*tuple[Any, ...]]:
    """Return a row for each column, with the role's privileges and the state of the server."""
    wanted = arrays(
        "wanted",
        number=("numbers", Integer()),
        of_schema=("schemas", Text()),
        called=("names", Text()),
    )
    relation = _catalog_table("pg_class", "oid", "relname", "relnamespace", "relkind")
    schema = _catalog_table("pg_namespace", "oid", "nspname")
    attribute = _catalog_table(
        "pg_attribute",
        "attrelid",
        "attname",
        "attnum",
        "atttypid",
        "attisdropped",
        "attnotnull",
        "atthasdef",
        "attidentity",
    )
    type_ = _catalog_table("pg_type", "oid", "typbasetype", "typcategory")
    trigger = _catalog_table("pg_trigger", "tgrelid", "tgisinternal")
    of_the_table = and_(
        relation.c.relname == wanted.c.called,
        relation.c.relkind.in_(("r", "p", "v", "f")),
        or_(
            schema.c.nspname == wanted.c.of_schema,
            and_(wanted.c.of_schema.is_(None), func.pg_table_is_visible(relation.c.oid)),
        ),
    )
    of_its_columns = and_(
        attribute.c.attrelid == relation.c.oid,
        attribute.c.attnum > 0,
        attribute.c.attisdropped.is_(False),
    )
    may_be_filled_by_a_trigger = exists().where(
        trigger.c.tgrelid == relation.c.oid, trigger.c.tgisinternal.is_(False)
    )
    base_type = func.coalesce(func.nullif(type_.c.typbasetype, 0), type_.c.oid)
    return select(
        func.current_user().label("role"),
        func.pg_is_in_recovery().label("is_standby"),
        (func.current_setting("transaction_read_only") == "on").label("is_read_only"),
        wanted.c.number,
        relation.c.oid.is_not(None).label("exists"),
        schema.c.nspname.label("schema"),
        func.has_schema_privilege(schema.c.oid, "USAGE").label("may_usage"),
        func.has_any_column_privilege(relation.c.oid, "SELECT").label("may_select"),
        func.has_any_column_privilege(relation.c.oid, "INSERT").label("may_insert"),
        func.has_any_column_privilege(relation.c.oid, "UPDATE").label("may_update"),
        func.has_table_privilege(relation.c.oid, "DELETE").label("may_delete"),
        attribute.c.attname.label("column"),
        cast(type_.c.typcategory, Text).label("category"),
        func.format_type(base_type, null()).label("type"),
        and_(
            attribute.c.attnotnull,
            attribute.c.atthasdef.is_(False),
            attribute.c.attidentity == "",
            not_(may_be_filled_by_a_trigger),
        ).label("requires_value"),
    ).select_from(
        wanted.outerjoin(
            relation.join(schema, schema.c.oid == relation.c.relnamespace), of_the_table
        )
        .outerjoin(attribute, of_its_columns)
        .outerjoin(type_, type_.c.oid == attribute.c.atttypid)
    )


def _catalog_table(name: str, *columns: str) -> TableClause:
    return table(name, *(column(title) for title in columns), schema="pg_catalog")


_CATALOG_QUERY = _catalog_query()
