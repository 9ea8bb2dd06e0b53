"""What the tables must be and what the role may do: checked before work, explained when refused.

A migration that has not run, a GRANT that is missing, a standby: none of these says anything about
a job, and each ends when somebody mends it. So each is an error of its own, with cause and remedy.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    DateTime,
    Engine,
    Enum,
    Integer,
    Numeric,
    Select,
    String,
    Table,
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
from sqlalchemy.exc import DBAPIError

from ..database.column_types import DateTimeUTC
from ..database.dialects import MISMATCH, MISSING, NULL, READ_ONLY, REFUSED, database_of, refusal_of
from ..errors import (
    DatabaseNotReadyError,
    PrivilegeError,
    ReadOnlyDatabaseError,
    SchemaMismatchError,
    TablesMissingError,
)
from ..store.postgresql_statements import archived_columns, arrays
from .mixins import SCHEMA, ArchivedJobMixin, JobMixin, RunningJobMixin

_OURS = frozenset(
    name
    for mixin in (JobMixin, ArchivedJobMixin, RunningJobMixin)
    for base in mixin.__mro__
    for name in getattr(base, "__annotations__", ())
)


class Use(NamedTuple):
    """A table, and what is done with it.

    :param privileges: what the role needs: any of SELECT, INSERT, UPDATE and DELETE.
    :param filled: the columns that get a value where a row is inserted; None where none is, or
        where that is somebody else's affair.
    """

    table: Table
    privileges: Sequence[str]
    filled: frozenset[str] | None = None


def uses_of(
    job: Table, archived: Table, running: Table | None, children: Sequence[Table]
) -> tuple[Use, ...]:
    """Return what a worker does with its tables.

    :param children: tables joined to that of the jobs.
    """
    uses = (
        Use(job, ("SELECT", "UPDATE", "DELETE")),
        Use(archived, ("SELECT", "INSERT"), archived_columns(job, archived, children)),
        *(Use(child, ("SELECT",)) for child in children),
    )
    if running is None:
        return uses
    all_four = ("SELECT", "INSERT", "UPDATE", "DELETE")
    return (*uses, Use(running, all_four, frozenset(RunningJobMixin.__annotations__)))


# Explain.


@contextmanager
def explained(bind: Engine | Connection, *uses: Use) -> Generator[None]:
    """Turn the database's refusal of our own statements into an error that names the remedy.

    :param uses: what the statements do.
    :raises DatabaseNotReadyError: for a refusal that says nothing about the values or the row.
    """
    try:
        yield
    except DBAPIError as error:
        explanation = _explanation(error, uses, _role(bind, bind.engine.url.username))
        if explanation is None:
            raise
        raise explanation from error


def _explanation(error: DBAPIError, uses: Sequence[Use], role: str) -> DatabaseNotReadyError | None:
    driver_error = getattr(error.orig, "__cause__", None) or error.orig
    details = getattr(driver_error, "diag", driver_error)
    # An autoflush may send other statements, and a context is that of a trigger's.
    if getattr(details, "context", None) or not _named(error.statement or "", uses):
        return None
    sort = refusal_of(error)
    said = str(error.orig).partition("\n")[0]
    if sort == MISSING:
        return _tables_missing(said)
    if sort == MISMATCH or (sort == NULL and _is_unknown(details, uses)):
        return _mismatch(said)
    if sort == READ_ONLY:
        return _read_only(said)
    if sort == REFUSED:
        named = _named(said, uses)
        needed = [grant for use in named or uses for grant in _grants(use, role, usage=not named)]
        return _refused(said, needed)
    return None


def _named(text: str, uses: Sequence[Use]) -> list[Use]:
    return [use for use in uses if re.search(rf"\b{re.escape(use.table.name)}\b", text)]


def _is_unknown(details: Any, uses: Sequence[Use]) -> bool:
    """Tell whether the column that is NULL is one which no statement of ours knows."""
    if not hasattr(details, "column_name"):  # MySQL refuses only what nobody has given
        return True
    return any(
        use.filled is not None
        and details.table_name == use.table.name
        and details.column_name not in use.filled
        for use in uses
    )


# Check.


def check(connection: Connection, uses: Sequence[Use]) -> None:
    """Look at all the tables, on PostgreSQL in one round trip.

    :raises DatabaseNotReadyError: if the work would fail; the message names all that is amiss of
        the first kind that is.
    """
    if not database_of(connection.dialect).arrays:
        _check_what_is_there(connection, uses)
        return
    rows = connection.execute(
        _LOOK,
        {
            "numbers": list(range(len(uses))),
            "schemas": [connection.schema_for_object(use.table) for use in uses],
            "names": [use.table.name for use in uses],
        },
    ).all()
    if rows[0].is_read_only:
        what = "the server is a standby" if rows[0].is_standby else "transactions are read-only"
        raise _read_only(what)
    role = _role(connection, rows[0].role)
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
        grants += _grants(use._replace(privileges=lacks), role, usage=not there.may_usage)
    if missing:
        raise _tables_missing("; ".join(missing))
    if differences:
        raise _mismatch("; ".join(differences))
    if grants:
        what = f"the role {role} lacks {'; '.join(_once(lacking))}"
        raise _refused(what, grants)


def _check_what_is_there(connection: Connection, uses: Sequence[Use]) -> None:
    """Look at tables and columns; what the role lacks is explained when it is refused."""
    look = inspect(connection)
    missing: list[str] = []
    differences: list[str] = []
    for use in uses:
        schema = connection.schema_for_object(use.table)
        if not look.has_table(use.table.name, schema=schema):
            missing.append(f"{use.table.name if schema is None else use.table} does not exist")
            continue
        there = {column["name"]: column for column in look.get_columns(use.table.name, schema)}
        differences += [
            f"column {wanted.name} of {use.table} is missing"
            for wanted in use.table.c
            if there.pop(wanted.name, None) is None
        ]
        differences += [
            f"column {name} of {use.table} takes no NULL, and gets no value"
            for name, column in there.items()
            if use.filled is not None and name not in use.filled and _must_be_given(column)
        ]
    if missing:
        raise _tables_missing("; ".join(missing))
    if differences:
        raise _mismatch("; ".join(differences))


def _must_be_given(column: ReflectedColumn) -> bool:
    filled = column.get("autoincrement") is True or column.get("computed")
    return not (column["nullable"] or column["default"] is not None or filled)


def _differences(connection: Connection, use: Use, found: Sequence[Any]) -> Iterator[str]:
    there = {row.column: row for row in found}
    for wanted in use.table.c:
        row = there.pop(wanted.name, None)
        if row is None:
            yield f"column {wanted.name} of {use.table} is missing"
        elif wanted.name in _OURS and _sort(wanted.type) not in (None, row.category, row.type):
            should = wanted.type.compile(connection.dialect)
            yield f"column {wanted.name} of {use.table} is {row.type}, should be {should}"
    for name, row in there.items():
        if use.filled is not None and name not in use.filled and row.must_be_given:
            yield f"column {name} of {use.table} takes no NULL, and gets no value"


def _sort(type_: Any) -> str | None:
    """Return what PostgreSQL calls the sort of types that will do, if one of them must be it."""
    if isinstance(type_, String) and not isinstance(type_, Enum):
        return "S"
    if isinstance(type_, Integer | Numeric):
        return "N"
    if isinstance(type_, DateTime | DateTimeUTC):
        return "D"
    return "uuid" if isinstance(type_, Uuid) and type_.native_uuid else None


def _look() -> Select[*tuple[Any, ...]]:
    """Return what there is, a row for each table and column, and who asks."""
    wanted = arrays(
        "wanted",
        number=("numbers", Integer()),
        of_schema=("schemas", Text()),
        called=("names", Text()),
    )
    relation = _catalog("pg_class", "oid", "relname", "relnamespace", "relkind")
    schema = _catalog("pg_namespace", "oid", "nspname")
    attribute = _catalog(
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
    type_ = _catalog("pg_type", "oid", "typbasetype", "typcategory")
    trigger = _catalog("pg_trigger", "tgrelid", "tgisinternal")
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
        ).label("must_be_given"),
    ).select_from(
        wanted.outerjoin(
            relation.join(schema, schema.c.oid == relation.c.relnamespace), of_the_table
        )
        .outerjoin(attribute, of_its_columns)
        .outerjoin(type_, type_.c.oid == attribute.c.atttypid)
    )


def _catalog(name: str, *columns: str) -> TableClause:
    return table(name, *(column(title) for title in columns), schema="pg_catalog")


_LOOK = _look()


# Say what to do.


def _tables_missing(cause: str) -> TablesMissingError:
    if "unknown database" in cause or f"no such table: {SCHEMA}." in cause:
        cause += (
            f" (SQLite has no schemas: create the engine with execution_options="
            f'{{"schema_translate_map": {{"{SCHEMA}": None}}}})'
        )
    return TablesMissingError(
        f"{cause}: create the job tables with 'proletarian migrate upgrade --url …', or with "
        f"sqlalchemy_proletarian.migrations.upgrade() in a revision of your own"
    )


def _mismatch(cause: str) -> SchemaMismatchError:
    return SchemaMismatchError(
        f"{cause}: bring the tables in line with the models of this release, with 'proletarian "
        f"migrate upgrade --url …' or a revision of your own; 'proletarian migrate check --url …' "
        f"compares the default tables"
    )


def _read_only(cause: str) -> ReadOnlyDatabaseError:
    return ReadOnlyDatabaseError(
        f"{cause}: connect to the primary (a URL with several hosts takes "
        f"target_session_attrs=read-write), or turn default_transaction_read_only off"
    )


def _refused(cause: str, grants: Sequence[str]) -> PrivilegeError:
    return PrivilegeError(f"{cause}: {'; '.join(_once(grants))}")


def _grants(use: Use, role: str, *, usage: bool) -> Iterator[str]:
    if usage and use.table.schema:
        yield f"GRANT USAGE ON SCHEMA {use.table.schema} TO {role}"
    if use.privileges:
        yield f"GRANT {', '.join(use.privileges)} ON {use.table} TO {role}"


def _role(bind: Engine | Connection, name: str | None) -> str:
    return "…" if name is None else bind.dialect.identifier_preparer.quote(name)


def _once(texts: Sequence[str]) -> Iterable[str]:
    return dict.fromkeys(texts)
