"""Explaining errors of the library's own statements: what is missing, and what to do about it.

A migration that has not run, a missing GRANT, a standby server: none of these is the fault of a
job. So each has an error class of its own, and its message says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DBAPIError

from ..database.error_codes import (
    MISMATCH,
    MISSING,
    NULL,
    PREPARED,
    READ_ONLY,
    REFUSED,
    refusal_of,
)
from ..database.poolers import may_share_sessions, prepared_lost
from ..errors import (
    DatabaseNotReadyError,
    PrivilegeError,
    ReadOnlyDatabaseError,
    SchemaMismatchError,
    TablesMissingError,
)
from .defaults import SCHEMA


class TableUse(NamedTuple):
    """A table, and what the library's statements do with it.

    :param privileges: what the role needs: any of SELECT, INSERT, UPDATE and DELETE.
    :param filled: the columns that get a value when a row is inserted; None if the library inserts
        no rows, or inserts those of a model whose columns it does not know.
    """

    table: Table
    privileges: Sequence[str]
    filled: frozenset[str] | None = None


@contextmanager
def explained(bind: Engine | Connection, *uses: TableUse) -> Generator[None]:
    """Raise an error that names the remedy in place of the database's error.

    :param uses: what the statements in the block do.
    :raises DatabaseNotReadyError: for an error that is not about the values or the row.
    """
    try:
        yield
    except DBAPIError as error:
        explanation = explanation_of(error, bind, uses)
        if explanation is None:
            raise
        raise explanation from error


def explanation_of(
    error: DBAPIError, bind: Engine | Connection, uses: Sequence[TableUse]
) -> DatabaseNotReadyError | None:
    """Return the error to raise in place of the database's; None if that one says it all."""
    driver_error = getattr(error.orig, "__cause__", None) or error.orig
    details = getattr(driver_error, "diag", driver_error)
    # The statement may be the user's, sent by an autoflush. A context is that of a trigger.
    if getattr(details, "context", None) or not _mentioned(error.statement or "", uses):
        return None
    kind = refusal_of(error)
    message = str(error.orig).partition("\n")[0]
    if kind == MISSING:
        return tables_missing(message)
    if kind == MISMATCH or (kind == NULL and _is_unknown_column(details, uses)):
        return schema_mismatch(message)
    if kind == READ_ONLY:
        return read_only(message)
    if kind == PREPARED and may_share_sessions(bind):
        return prepared_lost(error, bind.dialect)
    if kind == REFUSED:
        role = role_name(bind, bind.engine.url.username)
        mentioned = _mentioned(message, uses)
        grants = [
            grant
            for use in mentioned or uses
            for grant in missing_grants(use, role, usage=not mentioned)
        ]
        return privilege_missing(message, grants)
    return None


def _mentioned(text: str, uses: Sequence[TableUse]) -> list[TableUse]:
    return [use for use in uses if re.search(rf"\b{re.escape(use.table.name)}\b", text)]


def _is_unknown_column(details: Any, uses: Sequence[TableUse]) -> bool:
    """Return whether the NOT NULL column that got no value is one that the models do not have."""
    if not hasattr(details, "column_name"):  # MySQL reports only columns without any value
        return True
    return any(
        use.filled is not None
        and details.table_name == use.table.name
        and details.column_name not in use.filled
        for use in uses
    )


def tables_missing(cause: str) -> TablesMissingError:
    """Return the error for tables that do not exist."""
    if "unknown database" in cause or f"no such table: {SCHEMA}." in cause:
        cause += (
            f" (SQLite has no schemas: create the engine with execution_options="
            f'{{"schema_translate_map": {{"{SCHEMA}": None}}}})'
        )
    return TablesMissingError(
        f"{cause}: create the job tables with 'proletarian migrate upgrade --url …', or with "
        f"sqlalchemy_proletarian.migrations.upgrade() in a revision of your own"
    )


def schema_mismatch(cause: str) -> SchemaMismatchError:
    """Return the error for tables that differ from the models."""
    return SchemaMismatchError(
        f"{cause}: bring the tables in line with the models of this release, with 'proletarian "
        f"migrate upgrade --url …' or a revision of your own; 'proletarian migrate check --url …' "
        f"compares the default tables"
    )


def read_only(cause: str) -> ReadOnlyDatabaseError:
    """Return the error for a database that accepts no writes."""
    return ReadOnlyDatabaseError(
        f"{cause}: connect to the primary (a URL with several hosts takes "
        f"target_session_attrs=read-write), or turn default_transaction_read_only off"
    )


def privilege_missing(cause: str, grants: Sequence[str]) -> PrivilegeError:
    """Return the error for missing privileges."""
    return PrivilegeError(f"{cause}: {'; '.join(dict.fromkeys(grants))}")


def missing_grants(use: TableUse, role: str, *, usage: bool) -> Iterator[str]:
    """Yield the GRANT statements for the privileges of a use.

    :param usage: whether the privilege USAGE on the schema is missing, too.
    """
    if usage and use.table.schema:
        yield f"GRANT USAGE ON SCHEMA {use.table.schema} TO {role}"
    if use.privileges:
        yield f"GRANT {', '.join(use.privileges)} ON {use.table} TO {role}"


def role_name(bind: Engine | Connection, name: str | None) -> str:
    """Return the name of a role as it is written in SQL; an ellipsis for an unknown one."""
    return "…" if name is None else bind.dialect.identifier_preparer.quote(name)
