"""Jobs held by leases: many handlers run at once, and share one connection that holds the leases.

Each poll is one short transaction: settle what has ended, extend the leases of what runs, claim as
many jobs as there are places free. Between polls no transaction is open, however long the handlers
take, and nobody's lock is waited for, lest other jobs' leases run out meanwhile. A handler that
takes a session has a transaction of its own, which it shares with the completion of its job: both
take effect, or neither, and neither does when the lease was lost.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

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
from ...lifecycle.outcomes import SUCCEEDED
from ...lifecycle.run import Run
from ...liveness.expired_leases import Lapses
from ...liveness.lease_markers import LeaseMarkers
from ...liveness.markers import RETURN
from ...models.requirements import explained
from ...retry import Snooze
from ...runtime.threads import Waiting
from ..perform import Performer, Report
from .session import ConnectionLostError, OwnTransactions
from .settle import PAUSE, Settling

_EXTENSIONS_PER_LEASE = 3

_LOCKED = 0.2
"""Seconds until a job is settled that somebody had locked."""


class LeaseDesk:
    """Holds the leases of one worker, and starts and settles the runs of their jobs.

    :param sessions: of handlers that take one; each checks out a connection of its own when it is
        used.
    :param places: how many handlers run at a time.
    :param ring: called when a run has ended.
    :param shared_time: by which leases are measured; see :class:`.SharedClock`.
    """

    def __init__(
        self,
        performer: Performer,
        *,
        sessions: OwnTransactions,
        lease: timedelta,
        places: int,
        markers: LeaseMarkers | None,
        waiting: Waiting,
        ring: Callable[[], object],
        shared_time: Clock,
    ) -> None:
        self.due: NextDue = NOTHING_WAITS
        self.ran = 0
        self.tainted: Connection | None = None
        self._performer = performer
        self._store = performer.store
        self._sessions = sessions
        self._lease = lease
        self._places = self._all_places = places
        self._markers = markers
        self._lapses = Lapses(performer, markers)
        self._settling = Settling(performer)
        self._waiting = waiting
        self._ring = ring
        self._shared_time = shared_time
        self._held: dict[tuple[Any, int, Any], Run] = {}
        self._suspects: set[Run] = set()
        self._ended: dict[Run, Exception | None] = {}
        # Leased, so far as is known, and not started.
        self._unsure: list[ClaimedJob] = []
        self._polling = False
        self._given_up = False
        self._refusal: DatabaseNotReadyError | None = None
        self._connection: Connection | None = None
        self._trust_at = self._extend_at = monotonic()
        self._first_end: datetime | None = None
        self._look_again_at: float | None = None
        self._passed_over = 0

    @property
    def busy(self) -> bool:
        """Whether it holds leases, or is about to."""
        return bool(self._held or self._unsure or self._polling)

    def poll(self, connection: Connection) -> bool:
        """Settle, extend and claim in one transaction; tell whether it is worth another look."""
        if refusal := self._refusal:
            self._refusal = None
            raise refusal
        if connection is not self._connection:
            if self._connection is not None:
                self._trust_at = monotonic() + RETURN
            self._connection = connection
        self._polling = True
        try:
            return self._poll(connection, apart=False)
        except DBAPIError as error:
            if is_lost(error):
                raise
            if is_conflict(error):  # somebody else writes, or what both locked was undone here
                return True
            # Perhaps one job is to blame: it must not keep the others from being settled.
            return self._poll(connection, apart=True)
        finally:
            self._polling = False

    def _poll(self, connection: Connection, *, apart: bool) -> bool:
        ended = self._take_ended()
        running = [run for run in self._held.values() if run not in ended]
        free = 0 if self._performer.stopping() else self._places - len(running)
        extending = bool(running) and self._extension_is_due()
        if free <= 0:
            self.due = NOTHING_WAITS
        if not (ended or self._unsure or free > 0 or extending):
            return False
        report = Report()
        claimed: list[Run] = []
        more = False
        self._look_again_at = None
        until = self._shared_time() + self._lease
        with self._store.begin(connection), explained(connection, *self._store.uses):
            self._store.release(connection, self._unsure)
            settled = self._settling.settle(connection, ended, report, apart=apart)
            if settled.locked:
                self._look_again_at = monotonic() + _LOCKED
            if extending:
                settled.lost += self._extend(connection, running, until)
            if self._markers is not None and (ended or self._unsure):
                # Whose row is still locked when the worker ends, was not its death.
                off = ended if self._given_up else settled.off
                self._markers.remove(connection, [*(run.job for run in off), *self._unsure])
            if free > 0:
                ends = self._first_end if running and not extending else until
                claimed, more = self._claim(
                    connection, free, len(running), until, report, ends=ends
                )
            for run in settled.off:
                run.in_doubt = True
            # If the commit fails, nobody knows whether they are ours.
            given_back_now = len(self._unsure)
            self._unsure += [run.job for run in claimed]
        del self._unsure[:given_back_now]
        if extending or not running:
            self._extend_at = monotonic() + self._lease.total_seconds() / _EXTENSIONS_PER_LEASE
            self._first_end = until
        for run in settled.off:
            self._held.pop(run.job.key, None)
            self._ended.pop(run, None)
            self._suspects.discard(run)
        self._performer.tell(report)
        self.ran += len(report.results)
        for run in settled.lost:
            self._lose(run)
        if self._performer.stopping():  # asked meanwhile: what was claimed is given back
            return bool(self._unsure)
        while claimed:
            self._start(claimed.pop(0))
            self._unsure.pop(0)
        return more

    def _take_ended(self) -> dict[Run, Exception | None]:
        ended: dict[Run, Exception | None] = {}
        for run, error in list(self._ended.items()):
            if self._held.get(run.job.key) is run:
                ended[run] = error
            else:  # the worker had let go of it
                self._ended.pop(run, None)
        return ended

    # Extend.

    def _extension_is_due(self) -> bool:
        # By the clock as well: a computer that slept has not counted the seconds.
        late = self._first_end is not None and self._shared_time() >= self._first_end
        return late or monotonic() >= self._extend_at

    def _extend(self, connection: Connection, running: Iterable[Run], until: datetime) -> list[Run]:
        """Extend the leases of runs; return those that have lost theirs."""
        held = {run.job: run for run in running if not run.lost}
        # A run that settles its job itself has left no row to extend.
        return [
            held[job]
            for job in self._store.extend(connection, list(held), until)
            if not held[job].settling
        ]

    def _lose(self, run: Run) -> None:
        if run.lost:
            return
        run.lost = True
        # Who cancels a leased job archives it.
        cancelled = isinstance(run.asked, JobCancelledError)
        event = "job-cancelled" if cancelled else "lease-lost"
        self._performer.events.emit(event, **run.job.about())
        run.ask(LeaseLostError(_LOST))

    # Claim.

    def _claim(
        self,
        connection: Connection,
        free: int,
        running: int,
        until: datetime,
        report: Report,
        *,
        ends: datetime | None,
    ) -> tuple[list[Run], bool]:
        """Lease due jobs; return their runs, and whether there may be more to claim.

        :param ends: when the first lease of what is running does.
        """
        now, shared = self._performer.now(), self._shared_time()
        if ends is not None:  # it may be over by now, and is not to be taken from oneself
            shared = min(shared, ends - timedelta.resolution)
        limit = free + self._passed_over
        claimed = self._store.claim(connection, limit, now, shared)
        self.due = NOTHING_WAITS
        if len(claimed) < limit:
            self.due = self._store.next_due(connection, now)
        self._settling.archive_ended(connection, claimed, report)
        found, claimed = len(claimed), [job for job in claimed if not job.ended_as]
        trusting = monotonic() >= self._trust_at
        judged = self._lapses.judge(connection, claimed, trusting=trusting)
        if judged.early:
            self._look_again_at = self._trust_at
        self._settling.bury(connection, judged.poison, report)
        if judged.together is not None:
            self._places = min(self._all_places, judged.together)
        elif not self._suspects:
            self._places = self._all_places
        room = max(0, self._places - running)
        taken = self._store.lease(connection, judged.jobs[:room], until)
        if taken and self._markers is not None:
            self._markers.place(connection, taken, running + len(taken), shared)
        runs = self._performer.runs(connection, taken)
        self._suspects.update(run for run in runs if run.job.job_id in judged.suspects)
        passed_over, self._passed_over = self._passed_over, len(judged.early)
        settled = found > len(claimed) or bool(judged.poison)
        more = settled or self._passed_over > passed_over or len(runs) == free
        return runs, more

    # Run.

    def _start(self, run: Run) -> None:
        for other in self.running():
            if other.job.job_id == run.job.job_id:  # whose lease expired: this worker took it again
                self._lose(other)
        self._held[run.job.key] = run
        try:
            self._waiting.spawn(partial(self._run, run), f"{run.job.job_type} {run.job.job_id}")
        except RuntimeError as error:  # no more threads
            self._performer.events.emit("polling-error", error)
            self._ended[run] = Snooze(PAUSE)

    def _run(self, run: Run) -> None:
        error: Exception | None = None
        losses = self._performer.losses
        try:
            self._performer.perform(run, self._session)
            run.settled = run.settling
            losses.forget(run.job.job_id)
        except CancelledError:
            error = JobInterruptedError("the event loop ends")
        except ConnectionLostError as lost:
            self._performer.events.emit("polling-error", lost.__cause__)
            run.in_doubt = run.settling
            error = losses.count(run.job.job_id, lost.__cause__) or Snooze(PAUSE)
        except Exception as raised:
            losses.forget(run.job.job_id)
            error = raised
        except BaseException as raised:
            error = RuntimeError(f"the handler raised {raised!r}")
            error.__cause__ = raised
        run.settling = run.settled
        self._ended.setdefault(run, error)
        self._ring()

    def _session(self, run: Run) -> AbstractContextManager[Session]:
        return self._sessions.begin(run, partial(self._complete, run))

    def _complete(self, run: Run, connection: Connection) -> None:
        """Settle a job in the transaction of its handler's session."""
        if run.abandoned:
            msg = "the worker waits for it no longer"
            raise JobInterruptedError(msg)
        run.settling = True
        result = (run.job, SUCCEEDED)
        now = self._performer.now()
        try:
            with explained(connection, *self._store.uses):
                if not self._store.settle_leased(connection, [result], now, wait=True):
                    raise LeaseLostError(_LOST)
                if self._markers is not None:
                    self._markers.remove(connection, [run.job])
        except DatabaseNotReadyError as error:
            if run.changed:  # by its handler: nobody else is refused
                raise
            self._refusal = error
            raise Snooze(PAUSE) from error

    # Between polls.

    def patience(self) -> float | None:
        """Return the most seconds until the next poll; None for as long as the worker likes."""
        times = [self._extend_at] if self._held else []
        if self._look_again_at is not None:
            times.append(self._look_again_at)
        return max(0.0, min(times) - monotonic()) if times else None

    def running(self) -> Iterable[Run]:
        """Return what runs at the moment."""
        return list(self._held.values())

    def held(self) -> Iterable[Run]:
        """Return what is held by leases: whatever is, has been started."""
        return self.running()

    def give_up(self) -> int:
        """Let go of what is running; return how many handlers that leaves behind.

        The next poll gives their jobs back.
        """
        self._given_up = True
        left = [run for run in self.running() if run not in self._ended]
        for run in left:
            run.abandoned = True
            self._ended.setdefault(run, JobInterruptedError("the worker stopped"))
        if self._polling and self._connection is not None:
            # It could not be settled in all this time. To give back takes less of the database.
            for run in [run for run in list(self._ended) if not run.settled]:
                self._ended[run] = JobInterruptedError("the worker stopped before it was settled")
            sever(self._connection)
        self._ring()
        return len(left)


_LOST = (
    "the job was not settled before its lease ended: somebody else has it now, or has ended it; "
    "what this run wrote through its session is undone"
)
