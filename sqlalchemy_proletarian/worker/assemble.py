"""Assembling the parts of a worker: the one place where they are created and connected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from sqlalchemy import Connection
from sqlalchemy import inspect as sa_inspect

from ..database.cluster import Cluster
from ..database.dialects import MAX_IDENTITY
from ..database.server_clock import SharedClock
from ..execution.decide import OutcomeDecider
from ..execution.invoke import Invoke
from ..execution.observe import run_observer
from ..execution.perform import JobExecutor
from ..execution.report import Reporter
from ..execution.runner import Runner
from ..execution.transaction.batch_size import BatchSize
from ..liveness.connection_losses import ConnectionLosses
from ..liveness.handler_connections import HandlerConnection, LeasedConnections
from ..liveness.marker_cleanup import MarkerCleanup
from ..liveness.markers import BatchMarkers, CrashMarkers
from ..liveness.orphans import Orphans
from ..liveness.presence import Presence
from ..models.job_classes import job_table
from ..runtime.base import Flag, Runtime
from ..store.base import Store
from ..store.markers import MarkerTable, open_marker_table
from ..store.open import open_store
from ..telemetry.events import Events
from ..telemetry.observers import Observers
from .archive_pruning import ArchivePruning
from .behind_pooler import check_connection
from .limits import WaitingForLimits
from .loop import Loop
from .options import WorkerSettings
from .paused_queues import PausedQueues
from .pool import WorkerPool
from .unknown_types import UnknownTypes

if TYPE_CHECKING:
    from ..execution.lease.session import LeaseSession
    from ..execution.transaction.recovery import OwedAttempts
    from ..periodic.service import RecurringService
    from ..store.recurring import RecurringTable

_SUFFIX_LENGTH: Final = 8


class Assembly:
    """Builds pools for one worker. The parts that outlive a start are built once."""

    def __init__(self, settings: WorkerSettings, events: Events) -> None:
        self.store: Store = open_store(
            settings.engine.dialect,
            settings.job_model,
            settings.archived_job_model,
            settings.queues,
            running=settings.running,
            paused=settings.paused,
            prunes=bool(settings.retention),
            leased=settings.lease is not None,
            claim_filter=settings.claim_filter,
            weights=settings.weights,
            keeping=settings.handlers.keeping,
        )
        self._settings = settings
        self._events = events
        self._shared_time = SharedClock(settings.clock, events)
        self.cluster: Cluster = Cluster(leased=settings.lease is not None)
        self._marker_table: MarkerTable | None = None
        if settings.running is not None:
            self._marker_table = open_marker_table(settings.database, settings.running)
        self.recurring: RecurringTable | None = None
        if settings.recurring is not None:
            # A worker without recurring jobs does not need them in memory.
            from ..store.recurring import RecurringTable

            job = job_table(settings.job_model)
            self.recurring = RecurringTable(settings.recurring, job, settings.database)
        self._batch_size = BatchSize(
            settings.batch_size, settings.batch_window, settings.handlers.batch_sizes
        )

    def pool(self, runtime: Runtime, invoke: Invoke, stopping: Flag) -> WorkerPool:
        """Return a pool for one start of the worker."""
        settings = self._settings
        identity = _identity(settings.name)
        closing = ExitStack()
        presence = self._presence(runtime, identity, closing)
        paused = PausedQueues(self.store, self._events)
        waiting = WaitingForLimits(self.store, settings, self._shared_time, stopping.is_set)
        limiter = waiting.limiter(runtime, identity, closing)
        loop = Loop(
            settings.engine,
            store=self.store,
            events=self._events,
            runtime=runtime,
            stopping=stopping,
            identity=identity,
            alone=settings.lease is not None or settings.concurrency == 1,
            polling_interval=settings.polling_interval,
            on_polling_error=settings.on_polling_error,
            now=settings.now,
            shared_time=self._shared_time,
            paused=paused,
            when_connected=partial(self._connected, presence),
            when_idle=self._when_idle(),
            before_poll=waiting.check,
        )
        recurring = self._recurring(runtime, stopping, identity, loop)
        if recurring is not None:
            closing.callback(recurring.stop)
        observers = Observers(partial(self._events.emit, "observer-error"))
        observer = run_observer(observers, self._events, settings.now)
        if observer is not None:
            self.store.read_details()
        reporter = Reporter(self._events, settings.on_failed, observers)
        executor = JobExecutor(
            self.store,
            settings.handlers,
            serializer=settings.serializer,
            invoke=invoke,
            reporter=reporter,
            observer=observer,
        )
        decider = OutcomeDecider(
            self.store,
            settings.handlers,
            retry=settings.retry,
            format_error=settings.format_error,
            reporter=reporter,
            events=self._events,
            now=settings.now,
            stopping=stopping.is_set,
            max_deaths=settings.max_deaths,
        )
        pruning = self._pruning(runtime, identity, closing)
        losses = ConnectionLosses()
        runners: list[Runner] = []
        # A worker runs jobs in one mode; the other does not need to be in memory.
        if settings.lease is not None:
            from ..execution.lease.runner import LeaseRunner

            crash_markers = self._crash_markers(identity)
            runners.append(
                LeaseRunner(
                    store=self.store,
                    executor=executor,
                    decider=decider,
                    reporter=reporter,
                    losses=losses,
                    sessions=self._lease_session(
                        runtime, crash_markers, announced=presence is not None
                    ),
                    lease=settings.lease,
                    concurrency=settings.concurrency,
                    markers=crash_markers,
                    events=self._events,
                    runtime=runtime,
                    now=settings.now,
                    shared_time=self._shared_time,
                    stopping=stopping.is_set,
                    wake=loop.doorbell.ring,
                    on_claim=loop.note_claim,
                    limiter=limiter,
                )
            )
        else:
            from ..execution.transaction.exclusive import ExclusiveRuns
            from ..execution.transaction.recovery import TransactionRecovery
            from ..execution.transaction.runner import TransactionRunner

            markers = self._batch_markers(runtime, identity, closing)
            owed: OwedAttempts = {}
            exclusive = None
            if markers is not None and settings.concurrency > 1:
                exclusive = ExclusiveRuns(runtime, stopping.is_set, decider.max_deaths)
            for _ in range(settings.concurrency):
                recovery = TransactionRecovery(
                    store=self.store,
                    decider=decider,
                    events=self._events,
                    runtime=runtime,
                    now=settings.now,
                    stopping=stopping.is_set,
                    losses=losses,
                    owed=owed,
                    max_deaths=(exclusive or decider).max_deaths,
                )
                runners.append(
                    TransactionRunner(
                        store=self.store,
                        executor=executor,
                        decider=decider,
                        reporter=reporter,
                        recovery=recovery,
                        batch_size=self._batch_size,
                        make_session=settings.make_session,
                        now=settings.now,
                        stopping=stopping.is_set,
                        markers=markers,
                        handler_connection=HandlerConnection(identity) if presence else None,
                        on_claim=loop.found_work,
                        limiter=limiter,
                        exclusive=exclusive,
                    )
                )
        return WorkerPool(
            settings.engine,
            loop=loop,
            runners=runners,
            recurring=recurring,
            store=self.store,
            stopping=stopping,
            events=self._events,
            runtime=runtime,
            name=settings.name,
            identity=identity,
            notify=settings.notify,
            paused=paused,
            paused_table=settings.paused,
            pruning=pruning,
            closing=closing,
        )

    def _connected(self, presence: Presence | None, connection: Connection) -> None:
        """Do what each new connection of a member requires."""
        check_connection(connection, self._settings)
        if self._settings.database.liveness_by == "locks":
            self.cluster.check(connection)
        if presence is not None and not self.cluster.found:
            presence.show()

    def _presence(self, runtime: Runtime, identity: str, closing: ExitStack) -> Presence | None:
        settings = self._settings
        if settings.running is None or settings.database.liveness_by != "locks":
            return None
        orphans = Orphans(settings.running, settings.job_model)
        presence = Presence(settings.engine, identity, self._events, runtime, orphans)
        closing.callback(presence.stop)
        return presence

    def _pruning(
        self, runtime: Runtime, identity: str, closing: ExitStack
    ) -> ArchivePruning | None:
        settings = self._settings
        if not settings.retention:
            return None
        pruning = ArchivePruning(
            settings.engine,
            settings.database,
            sa_inspect(settings.archived_job_model).local_table,
            settings.retention,
            name=f"{identity} pruning",
            events=self._events,
            runtime=runtime,
            now=settings.now,
        )
        closing.callback(pruning.stop)
        return pruning

    def _recurring(
        self, runtime: Runtime, stopping: Flag, identity: str, loop: Loop
    ) -> RecurringService | None:
        settings, table = self._settings, self.recurring
        if table is None:
            return None
        from ..periodic.agreement import Agreement
        from ..periodic.service import RecurringService
        from ..periodic.ticks import Ticks

        agreement = Agreement(
            table,
            settings.database,
            settings.definitions,
            settings.handlers.owner,
            self._events,
        )
        return RecurringService(
            settings.engine,
            table=table,
            ticks=Ticks(table, settings.database, settings.job_model, notify=settings.notify),
            agreement=agreement,
            events=self._events,
            runtime=runtime,
            stopping=stopping,
            identity=identity,
            clock=self._shared_time,
            polling_interval=settings.polling_interval,
            enqueued=loop.doorbell.ring,
        )

    def _batch_markers(
        self, runtime: Runtime, identity: str, closing: ExitStack
    ) -> BatchMarkers | None:
        if self._marker_table is None:
            return None
        markers = BatchMarkers(self._settings.engine, self._marker_table, identity, runtime)
        closing.callback(markers.close)
        return markers

    def _lease_session(
        self, runtime: Runtime, markers: CrashMarkers | None, *, announced: bool
    ) -> LeaseSession:
        from ..execution.lease.connection import engine_for_handlers
        from ..execution.lease.group import GroupCompletion
        from ..execution.lease.session import LeaseSession

        settings = self._settings
        engine = engine_for_handlers(settings.engine, settings.database)
        group = None
        if settings.database.settings:  # a group limits its waits for locks
            group = GroupCompletion(
                engine,
                settings.engine,
                settings.make_session,
                store=self.store,
                markers=markers,
                runtime=runtime,
                now=settings.now,
            )
        connections = LeasedConnections(settings.job_model, self.cluster) if announced else None
        return LeaseSession(
            settings.make_session,
            engine=engine,
            job_engine=settings.engine,
            job_model=settings.job_model,
            connections=connections,
            group=group,
            cluster=self.cluster,
        )

    def _crash_markers(self, identity: str) -> CrashMarkers | None:
        if self._marker_table is None:
            return None
        return CrashMarkers(self._marker_table, identity, self.cluster)

    def _when_idle(self) -> Callable[[Connection], object]:
        """Return what a worker does from time to time when no job is due."""
        settings, store = self._settings, self.store

        def count(connection: Connection) -> dict[str, int]:
            with store.begin(connection):
                return store.unknown_types(connection, settings.now())

        works: list[Callable[[Connection], object]] = [UnknownTypes(count, self._events)]
        if self._marker_table is not None:
            job = job_table(settings.job_model)
            works.append(MarkerCleanup(settings.database, self._marker_table, job, settings.now))

        def work(connection: Connection) -> None:
            for each in works:
                each(connection)

        return work


def _identity(name: str) -> str:
    """Return a name for the worker's connections on the server, unique for each start.

    If two starts had the same name, the markers of a crashed one would look like those of the next.
    """
    suffix = f" {uuid4().hex[-_SUFFIX_LENGTH:]}"
    # The server replaces characters that are not printable ASCII.
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
    return plain[: MAX_IDENTITY - len(suffix)] + suffix
