"""The limits of a worker, and jobs that wait for limits that no worker has any more.

A worker whose handlers have no limits needs little of this: from time to time it asks whether a job
waits whose type has lost its limit in a deploy.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from ..clock import Clock
from ..database.error_codes import is_undone
from ..execution.limit_rules import HandlerLimits
from ..models.job_classes import job_table
from ..runtime.base import Runtime
from ..runtime.interval import Interval
from ..store.base import Store
from .options import WorkerSettings

if TYPE_CHECKING:
    from ..limits.limiter import Limiter
    from ..limits.look import Look
    from ..store.places import PlaceTable

_INTERVAL: Final = 10.0
"""Seconds between two questions of a worker whose handlers have no limits."""


class WaitingForLimits:
    """Makes the limiter of a worker, and releases waiting jobs from time to time.

    :param stopping: returns whether the worker was requested to stop.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerSettings,
        shared_time: Clock,
        stopping: Callable[[], bool],
    ) -> None:
        self._store = store
        self._settings = settings
        self._shared_time = shared_time
        self._stopping = stopping
        self._look: Look | None = None
        self._interval = Interval(_INTERVAL)
        row = job_table(settings.job_model).c
        # In the order of the index, for the reason given in WaitingJobs.
        self._any = (
            select(row.waits_for).where(row.waits_for.is_not(None)).order_by(row.waits_for).limit(1)
        )

    def check(self, connection: Connection) -> None:
        """Release waiting jobs that may run, if it is time to look for them.

        :param connection: one that is not in a transaction.
        """
        if self._settings.places is None:
            if not self._interval.has_passed():
                return
            with self._store.begin(connection):
                if connection.scalar(self._any) is None:
                    return
        if self._look is None:
            self._look = self._new_look(None)
        try:
            self._look(connection)
        except DBAPIError as error:
            if not is_undone(error):
                raise
            # On another node of a cluster, a worker has released the same jobs.

    def limiter(self, runtime: Runtime, identity: str, closing: ExitStack) -> Limiter | None:
        """Return what applies the limits of the handlers; None if they have none."""
        settings = self._settings
        if settings.places is None:
            return None
        # A worker without limits does not need them in memory.
        from ..limits.limiter import Limiter
        from ..limits.rates import StartConnection
        from ..store.places import PlaceTable
        from ..store.waiting import WaitingJobs

        job = job_table(settings.job_model)
        table = PlaceTable(settings.places, job, settings.database)
        rules = self._rules()
        starts = None
        if settings.lease is None and rules.rates():
            starts = StartConnection(settings.engine, settings.database, identity, runtime)
            closing.callback(starts.close)
        self._look = self._new_look(table)
        return Limiter(
            rules,
            table=table,
            waiting=WaitingJobs(job, settings.database),
            look=self._look,
            leased=settings.lease is not None,
            now=settings.now,
            shared_time=self._shared_time,
            starts=starts,
        )

    def _rules(self) -> HandlerLimits:
        settings = self._settings
        return HandlerLimits(self._store, settings.handlers, settings.serializer)

    def _new_look(self, table: PlaceTable | None) -> Look:
        from ..limits.look import INTERVAL, Look
        from ..store.waiting import WaitingJobs

        settings = self._settings
        return Look(
            self._store,
            self._rules(),
            waiting=WaitingJobs(job_table(settings.job_model), settings.database),
            table=table,
            now=settings.now,
            shared_time=self._shared_time,
            stopping=self._stopping,
            interval=0.0 if table is None else INTERVAL,
        )
