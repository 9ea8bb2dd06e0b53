"""Insert one job with a Connection, in its transaction.

The usual row takes the short way: its INSERT is compiled once for each model and dialect, and the
driver gets the text. Every other row is inserted with SQLAlchemy's ``insert()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Table, insert, literal_column
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.engine.interfaces import BindTyping
from sqlalchemy.exc import DBAPIError

from ..models.requirements import explanation_of
from ..telemetry.observers import observe_inserts
from ..wakeup.announce import announce_on
from .facts import PLAIN, facts_of
from .values import require_key

_CONSTANTS = {"attempts": 0, "deaths": 0}


def insert_job(
    connection: Connection,
    job_model: type[Any],
    values: Mapping[str, Any],
    columns: Mapping[str, Any] = MappingProxyType({}),
    *,
    notify: bool,
) -> Any:
    """Insert a job, and wake workers when the transaction commits unless ``notify`` is false.

    :param values: the values of the mapped attributes, by their names.
    :param columns: values for the attributes that the model adds.
    :return: the job's id.
    :raises DatabaseNotReadyError: if the table is missing or does not match the model, the role
        lacks a privilege, or the database is read-only.
    :raises TypeError: as :func:`row_of`, and if ``columns`` has one of the values.
    """
    if columns:
        require_key(columns)
        if twice := columns.keys() & values.keys():
            msg = f"{', '.join(sorted(twice))}: enqueue sets this value itself"
            raise TypeError(msg)
        values = {**values, **columns}
    try:
        job_id = _insert(connection, job_model, values)
    except DBAPIError as error:
        explanation = explanation_of(error, connection, [facts_of(job_model).use])
        if explanation is None:
            raise
        raise explanation from error
    observe_inserts(lambda: [(values["job_type"], values["queue"])])
    if notify:
        announce_on(connection, job_model, values["queue"])
    return job_id


def _insert(connection: Connection, job_model: type[Any], values: Mapping[str, Any]) -> Any:
    compiled = _compiled_insert(connection.dialect, job_model)
    if compiled is not None and values.keys() == PLAIN and _is_plain(connection):
        connection.exec_driver_sql(compiled.text, compiled.parameters(values))
        return values["job_id"]
    row = row_of(job_model, values)
    result: Any = connection.execute(insert(facts_of(job_model).table), row)
    return row["job_id"] if "job_id" in row else result.inserted_primary_key[0]


def row_of(job_model: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the columns of a row, by the keys of the columns.

    :param values: the values of the mapped attributes, by their names.
    :raises TypeError: if the job would be more than one row, or a value is not that of a column.
    """
    mapper = sa_inspect(job_model)
    if len(mapper.tables) > 1:
        msg = (
            f"{job_model.__qualname__} is mapped to {len(mapper.tables)} tables "
            f"({', '.join(map(str, mapper.tables))}), but a Connection inserts one row: use "
            f"Session(bind=connection)"
        )
        raise TypeError(msg)
    row = {}
    for name, value in values.items():
        if name not in mapper.column_attrs:
            msg = f"{name}: no such column in {job_model.__qualname__}"
            if name in mapper.relationships:
                msg = (
                    f"{name} is a relationship of {job_model.__qualname__}: pass the foreign key "
                    f"column instead, or use Session(bind=connection)"
                )
            raise TypeError(msg)
        row[mapper.column_attrs[name].columns[0].key] = value
    if mapper.version_id_col is not None and mapper.version_id_generator:
        row.setdefault(mapper.version_id_col.key, mapper.version_id_generator(None))
    kind = mapper.polymorphic_on
    if kind is not None and kind.key in mapper.local_table.c and mapper.polymorphic_identity:
        row.setdefault(kind.key, mapper.polymorphic_identity)
    return row


def values_of(job: Any) -> dict[str, Any]:
    """Return the values of the mapped columns that a job object has."""
    state = sa_inspect(job)
    mapper = state.mapper
    values = {
        attr.key: state.dict[attr.key] for attr in mapper.column_attrs if attr.key in state.dict
    }
    if mapper.version_id_col is not None and mapper.version_id_generator:
        # A flush sets the first version of a row, an INSERT statement does not.
        name = mapper.get_property_by_column(mapper.version_id_col).key
        values.setdefault(name, mapper.version_id_generator(None))
    return values


def insert_object(connection: Connection, job: Any, *, notify: bool) -> Any:
    """Insert the row of a job object that is in no session, and return its id.

    The object stays as it is, except that it gets the id.

    :raises TypeError: as :func:`row_of`.
    :raises ValueError: if the object is in a session.
    """
    state = sa_inspect(job)
    if state.session is not None:
        msg = f"{job!r} is in a session, which inserts it: pass that session, not a Connection"
        raise ValueError(msg)
    values = {name: value for name, value in values_of(job).items() if value is not None}
    for name in state.mapper.relationships.keys():  # noqa: SIM118 - iterating gives the properties
        if related := state.dict.get(name):
            values[name] = related  # which is an error
    job_id = insert_job(connection, type(job), values, notify=notify)
    if "job_id" not in values:
        job.job_id = job_id
    return job_id


def _is_plain(connection: Connection) -> bool:
    """Return whether a statement may be sent as text: nothing translates or intercepts it."""
    dispatch = connection.dispatch
    return (
        "schema_translate_map" not in connection.get_execution_options()
        and not dispatch.before_execute
        and not dispatch.after_execute
    )


class _CompiledInsert:
    """The INSERT of a plain row as text, and the conversion of its parameters."""

    __slots__ = ("_conversions", "_is_positional", "text")

    def __init__(self, table: Table, dialect: Dialect) -> None:
        names = sorted(PLAIN - _CONSTANTS.keys())
        constants: dict[str, Any] = {
            name: literal_column(str(value)) for name, value in _CONSTANTS.items()
        }
        compiled: Any = insert(table).values(constants).compile(dialect=dialect, column_keys=names)
        self.text = str(compiled)
        self._is_positional: bool = compiled.positional
        self._conversions: list[tuple[str, Callable[[Any], Any] | None]] = [
            (name, table.c[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in (compiled.positiontup if compiled.positional else names)
        ]

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """Return the parameters as the driver takes them."""
        converted = {
            name: values[name] if convert is None else convert(values[name])
            for name, convert in self._conversions
        }
        return tuple(converted.values()) if self._is_positional else converted


_compiled: WeakKeyDictionary[Dialect, dict[type[Any], _CompiledInsert | None]] = WeakKeyDictionary()


def _compiled_insert(dialect: Dialect, job_model: type[Any]) -> _CompiledInsert | None:
    """Return the INSERT of a plain row; None if rows of the model or the dialect are not plain."""
    known = _compiled.get(dialect)
    if known is None:
        known = _compiled.setdefault(dialect, {})
    if job_model not in known:
        facts = facts_of(job_model)
        usual = facts.is_plain and facts.has_uuid
        usual = usual and dialect.bind_typing is not BindTyping.SETINPUTSIZES
        known[job_model] = _CompiledInsert(facts.table, dialect) if usual else None
    return known[job_model]
