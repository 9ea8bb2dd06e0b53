"""Lease mode: settle, extend and claim in one short transaction, and run handlers between polls.

All handlers of a worker share the connection that holds the leases. Between polls no transaction is
open, however long the handlers take. A poll never waits for a lock, because the leases of other
jobs could expire meanwhile. A handler that takes a session has a transaction of its own, see
:mod:`.session`, in which its job completes: both take effect, or neither, and neither does if the
lease was lost.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar, cast

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ...clock import Clock
from ...database.connections import is_lost, sever
from ...database.error_codes import is_conflict
from ...errors import (
    DatabaseNotReadyError,
    JobCancelledError,
    JobInterruptedError,
    LeaseLostError,
)
from ...lifecycle.claimed import NOTHING_WAITS, ClaimedJob, NextDue
from ...lifecycle.run import Call, Run, RunState
from ...liveness.connection_losses import ConnectionLosses
from ...liveness.expired_leases import ExpiredLeases
from ...liveness.markers import RECONNECT_TIME, CrashMarkers
from ...retry import Snooze
from ...runtime.base import Runtime
from ...store.base import Store
from ...telemetry.events import Events
from ..decide import OutcomeDecider
from ..invoke import OpenSession
from ..perform import JobExecutor
from ..report import Report, Reporter
from .claims import LeaseClaims
from .complete import LOST, Completion
from .connection import ConnectionLostError
from .leases import Leases
from .session import LeaseSession
from .settle import NOT_ITS_FAULT, LeaseSettling, Settled

if TYPE_CHECKING:
    from ...limits.limiter import Limiter

_AnyRun = TypeVar("_AnyRun", bound=Run)

_RETRY_LOCKED: Final = 0.2
"""Seconds after which a job is settled whose row another session had locked."""


class LeaseRunner:
    """Holds the leases of one worker, and starts and settles the runs of their jobs.

    :param sessions: opens the sessions of handlers, each on a connection of its own.
    :param concurrency: how many handlers run at a time.
    :param wake: called when a run has ended.
    :param on_claim: called when jobs were claimed, before they run.
    :param shared_time: the clock by which all workers measure leases; see :class:`.SharedClock`.
    :param limiter: the limits of the handlers; None if they have none.
    """

    def __init__(
        self,
        *,
        store: Store,
        executor: JobExecutor,
        decider: OutcomeDecider,
        reporter: Reporter,
        losses: ConnectionLosses,
        sessions: LeaseSession,
        lease: timedelta,
        concurrency: int,
        markers: CrashMarkers | None,
        events: Events,
        runtime: Runtime,
        now: Clock,
        shared_time: Clock,
        stopping: Callable[[], bool],
        wake: Callable[[], object],
        on_claim: Callable[[], object] = lambda: None,
        limiter: Limiter | None = None,
    ) -> None:
        self.next_due: NextDue = NOTHING_WAITS
        self.ran: int = 0
        self.tainted: Connection | None = None
        self.reached: bool = False
        self._store = store
        self._executor = executor
        self._reporter = reporter
        self._losses = losses
        self._sessions = sessions
        self._markers = markers
        self._events = events
        self._runtime = runtime
        self._shared_time = shared_time
        self._stopping = stopping
        self._wake = wake
        self._on_claim = on_claim
        self._limiter = limiter
        self._lease = lease
        self._leases = Leases(store, lease, shared_time)
        self._settling = LeaseSettling(store, decider, now)
        self._completion = Completion(store, markers, now, self._report_not_ready)
        self._claims = LeaseClaims(
            store=store,
            executor=executor,
            settling=self._settling,
            expired=ExpiredLeases(markers, decider.max_deaths),
            markers=markers,
            now=now,
            shared_time=shared_time,
            concurrency=concurrency,
            limiter=limiter,
        )
        self._ended: dict[Run, Exception | None] = {}
        self._unsure: list[ClaimedJob] = []
        """Jobs that are not started, and whose leases may have been committed."""
        self._polling = False
        self._given_up = False
        self._not_ready: DatabaseNotReadyError | None = None
        self._connection: Connection | None = None
        self._trust_at = monotonic()
        self._poll_at: float | None = None

    @property
    def busy(self) -> bool:
        """Whether it holds leases, or is about to."""
        return bool(self._leases.held or self._unsure or self._polling)

    # One poll.

    def poll(self, connection: Connection) -> bool:
        """Settle, extend and claim in one transaction; return whether to poll again at once."""
        if self._not_ready is not None:
            error, self._not_ready = self._not_ready, None
            raise error
        if connection is not self._connection:
            if self._connection is not None:
                self._trust_at = monotonic() + RECONNECT_TIME
            self._connection = connection
        self._polling = True
        self.reached = False
        try:
            return self._poll(connection, one_by_one=False)
        except DBAPIError as error:
            if is_lost(error):
                raise
            if is_conflict(error):
                return True
            # The archive may reject one job: it must not prevent the others from being settled.
            return self._poll(connection, one_by_one=True)
        finally:
            self._polling = False

    def _poll(self, connection: Connection, *, one_by_one: bool) -> bool:
        ended = self._take_ended()
        running = [run for run in self._leases.held if run not in ended]
        free = 0 if self._stopping() else self._claims.free(running)
        extending = bool(running) and self._leases.extension_is_due()
        if free <= 0:
            self.next_due = NOTHING_WAITS
        if not (ended or self._unsure or free > 0 or extending):
            return False
        report, settled = Report(), Settled()
        claimed: list[Run] = []
        more = committing = False
        self._poll_at = None
        self._claims.admission = None
        until = self._shared_time() + self._lease
        try:
            with self._store.begin(connection):
                self._store.release(connection, self._unsure)
                if ended:
                    settled = self._settling.settle(
                        connection, ended, report, one_by_one=one_by_one
                    )
                    if settled.locked:
                        self._poll_at = monotonic() + _RETRY_LOCKED
                if extending:
                    settled.lost += self._leases.extend(connection, running, until)
                self._remove_markers(connection, ended, settled)
                if free > 0:
                    ends = self._leases.first_end if running and not extending else until
                    claimed, more = self._claim(connection, running, until, report, ends=ends)
                released = len(self._unsure)
                self._unsure += [run.job for unit in claimed for run in unit.members]
                committing = True
        except BaseException:
            if committing:  # the commit may have taken effect
                for run in settled.done:
                    run.advance(RunState.IN_DOUBT)
            if self._limiter is not None:
                self._limiter.let_go(run.job.job_id for unit in claimed for run in unit.members)
            raise
        self.reached = True
        del self._unsure[:released]
        if extending or not running:
            self._leases.first_end = until
            self._leases.extend_at = monotonic() + self._leases.interval
        self._finish(settled, report)
        if self._limiter is not None:
            more = self._free_places(connection, settled, self._limiter) or more
        if self._stopping():  # requested meanwhile: the next poll releases the claimed jobs
            return bool(self._unsure)
        self._start(claimed)
        return more

    def _claim(
        self,
        connection: Connection,
        running: Sequence[Run],
        until: datetime,
        report: Report,
        *,
        ends: datetime | None,
    ) -> tuple[list[Run], bool]:
        trusting = monotonic() >= self._trust_at
        claimed = self._claims.claim(
            connection, running, until, report, ends=ends, trusting=trusting
        )
        self.next_due = self._claims.next_due
        if self._claims.undecided:
            self._poll_at = self._trust_at
        return claimed

    def _take_ended(self) -> dict[Run, Exception | None]:
        """Return the runs that ended since the last poll, with the errors of their attempts."""
        ended: dict[Run, Exception | None] = {}
        for run, error in list(self._ended.items()):
            if run in self._leases.held:
                ended[run] = error
            else:  # the worker has given it up
                self._ended.pop(run, None)
        return ended

    def _remove_markers(
        self, connection: Connection, ended: Iterable[Run], settled: Settled
    ) -> None:
        if self._markers is None or not (ended or self._unsure):
            return
        # A job whose row is still locked when the worker stops was not running when it crashed.
        done = ended if self._given_up else settled.done
        self._markers.remove(connection, [*(run.job for run in done), *self._unsure])

    def _finish(self, settled: Settled, report: Report) -> None:
        """Let go of the runs that were settled, and report them."""
        for run in settled.done:
            self._leases.held.pop(run, None)
            self._ended.pop(run, None)
            self._claims.suspects.discard(run)
        self._reporter.publish(report)
        self._reporter.undone(settled.done)
        self.ran += len(report.results)
        for run in settled.lost:
            self._lose(run)

    def _lose(self, run: Run) -> None:
        """Report that a run lost its lease, and request its end."""
        if run.advance(RunState.LOST):
            # Cancelling a leased job archives it, so its run loses the lease.
            cancelled = isinstance(run.end_reason, JobCancelledError)
            event = "job-cancelled" if cancelled else "lease-lost"
            self._events.emit(event, **run.job.about())
            run.request_end(LeaseLostError(LOST))

    def _free_places(self, connection: Connection, settled: Settled, limiter: Limiter) -> bool:
        """Let the jobs be due that wait for the places of jobs that have ended."""
        freed = limiter.let_go(run.job.job_id for run in settled.done)
        admission = self._claims.admission
        parked = () if admission is None else admission.parked
        if not (freed or parked):
            return False
        handed_over = limiter.after_commit(connection, freed=freed, parked=parked)
        return handed_over or bool(parked)

    # Perform.

    def _start(self, claimed: Sequence[Run]) -> None:
        """Start the handlers of claimed jobs."""
        if not claimed:
            return
        self._on_claim()
        runs = [run for unit in claimed for run in unit.members]
        if self._leases.held:
            claimed_again = {run.job.job_id for run in runs}
            for other in self.running():
                if other.job.job_id in claimed_again:  # its lease expired, and this worker has it
                    self._lose(other)
        self._leases.held.update(dict.fromkeys(runs))
        self._unsure.clear()
        try:
            self._runtime.spawn_all((self._work_of(unit), _name(unit)) for unit in claimed)
        except RuntimeError as error:  # the system cannot start another thread
            self._events.emit("polling-error", error)
            self._ended.update(dict.fromkeys(runs, Snooze(NOT_ITS_FAULT)))

    def _work_of(self, unit: Run) -> Callable[[], None]:
        if isinstance(unit, Call):
            return partial(self._perform_call, unit)
        return partial(self._perform, unit)

    def _perform(self, run: Run) -> None:
        """Run a handler until it ends, and note how."""
        self._ended.setdefault(run, self._attempt(run, self._executor.perform))
        self._wake()

    def _perform_call(self, call: Call) -> None:
        """Run a call of a batch handler, and those that must follow; note how each run ended."""
        calls = [call]
        while calls:
            call = calls.pop(0)
            calls += self._conclude(call, self._attempt(call, self._executor.calls.perform))
            self._wake()

    def _attempt(
        self, run: _AnyRun, perform: Callable[[_AnyRun, OpenSession], None]
    ) -> Exception | None:
        """Run a handler until it ends, and return its error."""
        error: Exception | None = None
        job_id = run.job.job_id
        try:
            if self._limiter is not None:
                self._require_start(run, self._limiter)
            perform(run, self._open_session)
            run.leave_settling(RunState.SETTLED)
            if self._losses.counts:
                self._losses.forget(job_id)
        except CancelledError:
            error = JobInterruptedError("the event loop ends")
        except ConnectionLostError as lost:
            self._events.emit("polling-error", lost.__cause__)
            run.leave_settling(RunState.IN_DOUBT)
            failure = None
            if isinstance(run, Call) and run.sole is None:
                self._executor.calls.split(run, lost)
            else:
                failure = self._losses.count(job_id, lost.__cause__)
            error = failure or Snooze(NOT_ITS_FAULT)
        except Exception as raised:
            self._losses.forget(job_id)
            error = raised
        except BaseException as raised:
            error = RuntimeError(f"the handler raised {raised!r}")
            error.__cause__ = raised
        run.leave_settling(RunState.RUNNING)  # if the transaction was rolled back
        return error

    def _conclude(self, call: Call, error: Exception | None) -> list[Call]:
        """Note how the runs of a call have ended; return the calls that must follow."""
        again = self._executor.calls.conclude(call, error)
        if again and self._stopping():
            call.errors |= dict.fromkeys(again, JobInterruptedError("the worker stops"))
            again = ()
        undecided = set(again)
        for run in call.runs:
            if run not in undecided:
                self._ended.setdefault(run, call.errors.get(run))
        return cast("list[Call]", self._executor.grouped(again))

    @staticmethod
    def _require_start(run: Run, limiter: Limiter) -> None:
        """Raise :class:`.Snooze` if it is too late for the start that was recorded."""
        if not limiter.may_start(run.job):
            raise Snooze(timedelta(0))

    def _open_session(self, run: Run) -> AbstractContextManager[Session]:
        return self._sessions.open(run, partial(self._completion.complete, run))

    def _report_not_ready(self, error: DatabaseNotReadyError) -> None:
        self._not_ready = error  # raised by the next poll

    # Between polls.

    def patience(self) -> float | None:
        """Return the number of seconds until the next poll at the latest; None for no limit."""
        times = [self._leases.extend_at] if self._leases.held else []
        if self._poll_at is not None:
            times.append(self._poll_at)
        seconds = max(0.0, min(times) - monotonic()) if times else None
        if self._limiter is not None and (until := self._limiter.patience()) is not None:
            seconds = until if seconds is None else min(seconds, until)
        return seconds

    @property
    def in_handler(self) -> bool:
        """Whether the thread or task that polls runs a handler: others do."""
        return False

    def handling(self) -> int:
        """Return how many jobs have a handler that runs; any thread may ask."""
        return sum(run not in self._ended for run in self.running())

    def running(self) -> Iterable[Run]:
        """Return the runs whose handlers are running."""
        return list(self._leases.held)

    def held(self) -> Iterable[Run]:
        """Return the runs of leased jobs; all of them have begun."""
        return self.running()

    def give_up(self) -> int:
        """Stop waiting for handlers; return how many are left behind. The next poll releases jobs.

        If a poll is running, its connection is severed.
        """
        self._given_up = True
        left = [run for run in self.running() if run not in self._ended]
        for run in left:
            run.advance(RunState.ABANDONED)
            self._ended.setdefault(run, JobInterruptedError("the worker stopped"))
        if self._polling and self._connection is not None:
            # The poll could not settle them in all this time. Releasing them is less work.
            for run in list(self._ended):
                if run.state is not RunState.SETTLED:
                    stopped = JobInterruptedError("the worker stopped before it was settled")
                    self._ended[run] = stopped
            sever(self._connection)
        self._wake()
        return self._claims.taken(left)


def _name(run: Run) -> str:
    return f"{run.job.job_type} {run.job.job_id}"
