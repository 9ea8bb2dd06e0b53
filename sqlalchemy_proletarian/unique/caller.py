"""The two forms of a caller's transaction: a Session gets job objects, a Connection gets ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Insert, Table, insert
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, lazyload, make_transient_to_detached
from sqlalchemy.orm.util import identity_key

from ..database.dialects import Database, database_of
from ..models.job_classes import base_of, bind_arguments, job_table
from ..producer.core import row_of


class Caller(ABC):
    """The caller's transaction, for the jobs of one model.

    :param connection: the connection of the transaction.
    """

    def __init__(self, connection: Connection, job_model: type[Any]) -> None:
        self.connection = connection
        self.job_model = job_model
        self.table: Table = job_table(job_model)
        self.database: Database = database_of(connection.dialect)

    def insert_unless_taken(self, values: Mapping[str, Any]) -> Any:
        """Insert a job, and return it or its id; None if its key is taken.

        MySQL and MariaDB have no such statement: there a duplicate key raises an error, which
        undoes only the statement. Their ON DUPLICATE KEY UPDATE would hide conflicts of every other
        unique key, and would not report whether it inserted the row.

        :param values: the values of the mapped attributes, by their names.
        """
        if self.database.conflict_insert is None:
            return self._insert(values)
        key = self.table.c.unique_key
        return self._insert_or_nothing(
            self.database.conflict_insert,
            values,
            index_elements=[self.table.c.queue, key],
            index_where=key.is_not(None),
        )

    @abstractmethod
    def _insert(self, values: Mapping[str, Any]) -> Any: ...

    @abstractmethod
    def _insert_or_nothing(
        self, function: Any, values: Mapping[str, Any], **conflict: Any
    ) -> Any: ...

    @abstractmethod
    def existing(self, job_id: Any, *, changed: bool = False) -> Any:
        """Return the job with an id, or the id; None if the job has ended in the meantime.

        :param changed: whether the call has changed the row.
        """


class OfSession(Caller):
    """The transaction of a Session."""

    def __init__(self, session: Session, job_model: type[Any]) -> None:
        session._autoflush()
        super().__init__(session.connection(bind_arguments=bind_arguments(job_model)), job_model)
        self._session = session

    def _insert(self, values: Mapping[str, Any]) -> Any:
        done: Any = self._session.execute(insert(self.job_model).values(values))
        return self.existing(*done.inserted_primary_key)

    def _insert_or_nothing(self, function: Any, values: Mapping[str, Any], **conflict: Any) -> Any:
        into = function(self.job_model).values(values).on_conflict_do_nothing(**conflict)
        return self._session.scalars(into.returning(self.job_model)).one_or_none()

    def existing(self, job_id: Any, *, changed: bool = False) -> Any:
        """Return the job."""
        base = base_of(self.job_model)
        found = self._session.identity_map.get(identity_key(base, job_id))
        if found is not None and not (changed or sa_inspect(found).expired):
            return found
        # On the connection of the jobs: a session may send its reads to a replica.
        with Session(self.connection) as reader:
            read = reader.get(base, job_id, options=[lazyload("*")])
            reader.expunge_all()
        found = None if read is None else self._session.merge(read, load=False)
        if found is None and self.database.conflict_insert is None:
            # It is there, because its key is locked, but it is newer than the snapshot: an object
            # that loads the rest when it is asked for.
            found = self.job_model(job_id=job_id)
            make_transient_to_detached(found)
            self._session.add(found)
        return found


class OfConnection(Caller):
    """The transaction of a Connection."""

    def _insert(self, values: Mapping[str, Any]) -> Any:
        into: Insert = insert(self.table).values(row_of(self.job_model, values))
        result: Any = self.connection.execute(into)
        return result.inserted_primary_key[0]

    def _insert_or_nothing(self, function: Any, values: Mapping[str, Any], **conflict: Any) -> Any:
        row = row_of(self.job_model, values)
        into = function(self.table).values(row).on_conflict_do_nothing(**conflict)
        return self.connection.scalar(into.returning(self.table.c.job_id))

    def existing(self, job_id: Any, *, changed: bool = False) -> Any:  # noqa: ARG002 - no object
        """Return the id."""
        return job_id


def caller_of(unit: Session | Connection, job_model: type[Any]) -> Caller:
    """Return the form for what the caller passed."""
    form = OfSession if isinstance(unit, Session) else OfConnection
    return form(unit, job_model)  # type: ignore[arg-type]  # the form is that of the unit
