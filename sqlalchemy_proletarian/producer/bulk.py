"""Enqueue many jobs with one INSERT in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack
from uuid import UUID

from sqlalchemy import Insert, Table, Text, bindparam, cast, column, func, insert, select, types
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..clock import require_aware
from ..database.dialects import Database, features_of
from ..models.defaults import Job
from ..models.job_classes import bind_arguments, identity_of, job_table
from ..models.mixins import JobMixin
from ..models.requirements import TableUse, explained
from ..wakeup.announce import announce
from .options import JobOptions, only_options
from .sessions import immediate_session, require_bind
from .values import has_uuid, job_values, require_key

_PLAIN = frozenset(
    {
        "job_id",
        "queue",
        "job_type",
        "payload",
        "attempts",
        "enqueued_at",
        "process_at",
        "priority",
        "deaths",
    }
)
"""Columns with text, numbers, UUIDs or times, which can be passed as JSON without loss."""


def enqueue_many(
    session: Session | scoped_session[Any],
    rows: Iterable[Mapping[str, Any] | tuple[str, Any]],
    *,
    job_model: type[JobMixin] = Job,
    **options: Unpack[JobOptions],
) -> int:
    """Insert many jobs immediately, in the session's transaction, without committing.

    Nothing is inserted if a row is invalid.

    :param session: a Session or scoped_session. For an AsyncSession, use
        :func:`sqlalchemy_proletarian.asyncio.enqueue_many`.
    :param rows: for each job a tuple ``(job_type, payload)``, or a mapping with ``job_type`` and
        any of ``payload``, ``queue``, ``process_at``, ``process_in``, ``priority`` and the columns
        that ``job_model`` adds. A mapping may omit ``job_type`` if ``job_model`` is the class of
        one job type.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param options: the keyword arguments described in :class:`.JobOptions`. ``queue``,
        ``process_at``, ``process_in`` and ``priority`` apply to rows without a value of their own.
    :return: the number of jobs inserted.
    :raises DatabaseNotReadyError: if the table is missing or does not match the model, the role
        lacks a privilege, or the database is read-only; the message says what to do.
    :raises PayloadError: if a payload cannot be encoded.
    :raises TypeError: if an argument or a row is of the wrong type, or a row names a column that
        the model does not have.
    :raises UnboundSessionError: if the session has no bind for ``job_model``.
    :raises ValueError: as :func:`.enqueue`.

    .. versionadded:: 0.1
    """
    chosen = only_options("enqueue_many", options)
    unit = immediate_session(session, "enqueue_many", "rows")
    require_bind(unit, job_model)
    now = require_aware("clock()", chosen.clock())
    identity = identity_of(job_model)
    defaults = {
        "queue": chosen.queue,
        "process_at": chosen.process_at,
        "process_in": chosen.process_in,
        "priority": chosen.priority,
    }
    with_id = has_uuid(job_model)
    own = frozenset(sa_inspect(job_model).column_attrs.keys())
    inserts: list[dict[str, Any]] = []
    for row in rows:
        given = {**defaults, **_as_mapping(row, identity)}
        arguments = {name: given.pop(name) for name in ("job_type", *defaults)}
        values = job_values(
            job_model,
            payload=given.pop("payload", None),
            serializer=chosen.serializer,
            now=now,
            **arguments,
        )
        if unknown := given.keys() - own:
            msg = f"{', '.join(sorted(unknown))}: no such column in {job_model.__qualname__}"
            raise TypeError(msg)
        require_key(given)
        if with_id:
            values["job_id"] = chosen.uuid_fn()
        inserts.append(values | given)
    if inserts:
        table = job_table(job_model)
        use = TableUse(table, ("INSERT",), frozenset(table.c.keys()))
        bind = unit.get_bind(**bind_arguments(job_model))
        with explained(bind, use):
            _insert(unit, features_of(bind.dialect), job_model, inserts)
    if chosen.notify:
        for name in {values["queue"] for values in inserts}:
            announce(unit, job_model, name)
    return len(inserts)


def _insert(
    session: Session, database: Database, job_model: type[Any], rows: Sequence[dict[str, Any]]
) -> None:
    if database.inserts_documents and _is_plain(job_model, rows):
        _insert_document(session, job_model, rows)
    elif _chooses(session):
        # For a bulk insert, SQLAlchemy calls get_bind as it does for a read, and horizontally
        # sharded sessions raise an error.
        session._autoflush()
        connection = session.connection(bind_arguments=bind_arguments(job_model))
        with Session(connection, join_transaction_mode="rollback_only") as joined:
            joined.execute(insert(job_model), rows)
    else:
        session.execute(insert(job_model), rows)


def _chooses(session: Session) -> bool:
    """Return whether the session's class overrides ``get_bind``."""
    return getattr(session.get_bind, "__func__", None) is not Session.get_bind


def _is_plain(job_model: type[Any], rows: Sequence[dict[str, Any]]) -> bool:
    mapper = sa_inspect(job_model)
    made_in_python = {c.key for c in job_table(job_model).c if c.default is not None}
    return (
        not mapper.inherits
        and mapper.version_id_col is None
        and made_in_python <= _PLAIN
        and all(row.keys() <= _PLAIN for row in rows)
    )


def _insert_document(
    session: Session, job_model: type[Any], rows: Sequence[dict[str, Any]]
) -> None:
    """Insert rows that are sent as one JSON document, which works with every driver.

    A value that is the same in all rows is sent once, as a parameter of its own.
    """
    same = {
        name: value
        for name, value in rows[0].items()
        if name != "payload" and all(row[name] == value for row in rows)
    }
    varying = [name for name in rows[0] if name not in same]
    document = json.dumps(
        [{name: row[name] for name in varying} for row in rows],
        ensure_ascii=False,
        default=_as_text,
        separators=(",", ":"),
    )
    statement = _document_statement(job_table(job_model), tuple(varying), tuple(same))
    given = {"document": document, **same}
    session.execute(statement, given, bind_arguments=bind_arguments(job_model))


def _as_text(value: UUID | datetime) -> str:
    return str(value) if isinstance(value, UUID) else value.isoformat()


def _document_statement(table: Table, varying: Sequence[str], same: Sequence[str]) -> Insert:
    given = (
        func.json_to_recordset(cast(bindparam("document", type_=Text), types.JSON))
        .table_valued(*(column(name, table.c[name].type) for name in varying), name="given")
        .render_derived(with_types=True)
    )
    return insert(table).from_select(
        [*varying, *same],
        select(
            *(given.c[name] for name in varying),
            *(bindparam(name, type_=table.c[name].type) for name in same),
        ),
        include_defaults=False,
    )


def _as_mapping(
    row: Mapping[str, Any] | tuple[str, Any], identity: str | None
) -> Mapping[str, Any]:
    if isinstance(row, Mapping) and (identity is not None or "job_type" in row):
        return {"job_type": identity, **row}
    if isinstance(row, tuple) and len(row) == 2:  # noqa: PLR2004 - as the message says
        return {"job_type": row[0], "payload": row[1]}
    msg = (
        f"a row must be a tuple (job_type, payload) or a mapping with 'job_type', not {row!r:.100}"
    )
    if isinstance(row, JobMixin):
        msg += ": for objects, use session.add_all"
    raise TypeError(msg)
