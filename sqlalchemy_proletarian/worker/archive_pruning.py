"""Pruning the archive in the background, by one worker at a time.

It has a connection of its own, which is open only while it prunes, and deletes small batches with
pauses between them. If the worker is killed, the batches that were committed stay deleted, and the
next worker goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from sqlalchemy import Connection, Engine, Table

from ..clock import Clock, as_timedelta
from ..database.connections import close_own_connection, own_connection, sever
from ..database.dialects import Database
from ..database.error_codes import is_undone
from ..database.named_locks import free_lock
from ..models.values import Status
from ..runtime.base import GRACE_PERIOD, Runtime
from ..runtime.interval import Interval
from ..store.pruning import Pruning
from ..telemetry.events import Events

if TYPE_CHECKING:
    from ..store.partitions import PartitionedArchive

INTERVAL: Final = 600.0
"""Seconds between two prunings of one worker."""

BATCH: Final = 1000
PAUSE: Final = 0.05
"""Seconds between two batches. They take less, so most of the time nothing is deleted."""

_FORGET: Final = 24 * 3600.0
"""Seconds after which a worker visits the rows again that it has visited, for those that were
locked or were inserted with an earlier time."""

Retention: TypeAlias = Mapping[Status | None, timedelta]
"""How long jobs stay in the archive, by status; the key None stands for all."""


def as_retention(given: object) -> Retention:
    """Return the checked value of the option ``archive_retention``.

    :raises TypeError: if it is neither a timedelta nor a mapping of statuses to timedeltas.
    :raises ValueError: if a duration is negative or a status does not exist.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        name = "archive_retention[{!r}]"
        return {
            Status(status): as_timedelta(name.format(status), age) for status, age in given.items()
        }
    if not isinstance(given, timedelta):
        msg = (
            f"archive_retention must be a timedelta, or a mapping of statuses to timedeltas, not "
            f"{given!r}"
        )
        raise TypeError(msg)
    return {None: as_timedelta("archive_retention", given)}


def _age_of_all(retention: Retention) -> timedelta | None:
    """Return the age from which jobs of every status are deleted; None if some are kept."""
    if None in retention:
        return retention[None]
    return max(retention.values()) if set(Status) <= set(retention) else None


class ArchivePruning:
    """Prunes the archive of one worker from time to time.

    :param name: the name of its connection on the server.
    """

    def __init__(
        self,
        engine: Engine,
        database: Database,
        archived: Table,
        retention: Retention,
        *,
        name: str,
        events: Events,
        runtime: Runtime,
        now: Clock,
    ) -> None:
        self._engine = engine
        self._database = database
        self._archived = archived
        self._retention = retention
        self._name = name
        self._events = events
        self._runtime = runtime
        self._now = now
        self._reached: dict[Status | None, datetime] = {}
        self._forget = Interval(_FORGET)
        self._stopping = runtime.flag()
        self._ended = runtime.flag()
        self._started = False
        self._has_warned = False
        self._connection: Connection | None = None
        translated = engine.get_execution_options().get("schema_translate_map", {})
        schema = translated.get(archived.schema, archived.schema)
        table = archived.name if schema is None else f"{schema}.{archived.name}"
        where = engine.url.database, table
        self._lock = free_lock(engine.dialect, f"proletarian prune {where}")

    def start(self) -> None:
        """Prune now, and then from time to time, concurrently with the caller."""
        self._started = True
        self._runtime.spawn(self._run, self._name)

    def stop(self) -> None:
        """End, after the current batch or at the latest after the grace period."""
        self._stopping.set()
        if self._started and not self._ended.wait(GRACE_PERIOD) and self._connection is not None:
            sever(self._connection)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    deleted = self._prune()
                except Exception as error:
                    if self._runtime.is_cancelled() or self._stopping.is_set():
                        return
                    # In a cluster, a worker of another node may have deleted the same rows.
                    if not is_undone(error):
                        self._events.emit("pruning-error", error)
                else:
                    if deleted:
                        self._events.emit("archive-pruned", jobs=deleted)
                self._stopping.wait(INTERVAL)
        finally:
            self._ended.set()

    def _prune(self) -> int:
        """Delete what is due, unless another worker does, and return the number of rows."""
        if self._forget.has_passed():
            self._reached.clear()
        connection = self._connection = own_connection(self._engine, self._name)
        deleted = 0
        try:
            archive = self._archive_if_partitioned(connection)
            if archive is not None:
                deleted, is_busy = self._change_partitions(connection, archive)
                if is_busy:  # at the next time: deleting the rows takes long, and leaves dead rows
                    return deleted
            for status, age in self._retention.items():
                statuses = None if status is None else [status.value]
                since = self._reached.get(status)
                before = self._now() - age
                pruning = Pruning(
                    self._archived,
                    before,
                    statuses,
                    BATCH,
                    since,
                    partitioned=archive is not None,
                )
                while not self._stopping.is_set():
                    done = self._step(connection, pruning)
                    if done is None:
                        break
                    deleted += done
                    self._stopping.wait(PAUSE)
                self._reached[status] = pruning.reached
        finally:
            self._connection = None
            close_own_connection(connection)
        return deleted

    def _archive_if_partitioned(self, connection: Connection) -> PartitionedArchive | None:
        if not self._database.partitions:
            return None
        from ..store.partitions import partitioned_archive  # in memory only where it is used

        with self._database.begin(connection):
            return partitioned_archive(connection, self._archived)

    def _change_partitions(
        self, connection: Connection, archive: PartitionedArchive
    ) -> tuple[int, bool]:
        """Make the partitions of the next months, and drop those of old months.

        :return: how many rows were dropped, and whether a partition is left that should be dropped.
        """
        from ..store import partitions

        now = self._now()
        if archive.may_make:
            partitions.make_partitions(connection, archive, now)
        with self._database.begin(connection):
            is_prepared = partitions.is_prepared(connection, archive, now)
        if not is_prepared and not self._has_warned:
            self._has_warned = True
            self._events.emit(
                "partition-missing",
                table=str(archive.table),
                remedy=partitions.remedy(archive),
            )
        age = _age_of_all(self._retention)
        if age is None or not archive.may_drop:
            return 0, False
        return partitions.drop_partitions(connection, archive, now - age)

    def _step(self, connection: Connection, pruning: Pruning) -> int | None:
        """Delete a batch; return None if none is left, or if another worker prunes."""
        with self._database.begin(connection):
            if self._lock is not None and not connection.scalar(self._lock):
                return None
            return pruning.step(connection)
