"""Jobs held by leases: many handlers run at once, and share one connection that holds the leases.

Each poll is one short transaction: settle what has ended, extend the leases of what runs, claim as
many jobs as there are places free. Between polls no transaction is open, however long the handlers
take. A handler that takes a session has a transaction of its own, which it shares with the
completion of its job: both take effect, or neither, and neither does when the lease was lost.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .connect import is_lost
from .errors import JobCancelledError, JobInterruptedError, LeaseLostError, WorkerDiedError
from .lease_markers import Lapsed, LeaseMarkers
from .outcomes import INTERRUPTED, SUCCEEDED
from .perform import Performer, Report
from .retry import Snooze
from .runs import Run
from .store import NOTHING_WAITS, ClaimedJob, NextDue, explain_missing_tables
from .unit import own_transaction
from .waiting import Waiting

_EXTENSIONS_PER_LEASE = 3

_PAUSE_AFTER_A_LOST_CONNECTION = timedelta(seconds=1)


class LeaseDesk:
    """Holds the leases of one worker, and starts and settles the runs of their jobs.

    :param make_session: makes the sessions of handlers that take one; each checks out a connection
        of its own when it is used.
    :param places: how many handlers run at a time.
    :param ring: called when a run has ended.
    """

    def __init__(
        self,
        performer: Performer,
        *,
        make_session: Callable[..., Session],
        lease: timedelta,
        places: int,
        markers: LeaseMarkers | None,
        waiting: Waiting,
        ring: Callable[[], object],
    ) -> None:
        self.due: NextDue = NOTHING_WAITS
        self.ran = 0
        self._performer = performer
        self._store = performer.store
        self._make_session = make_session
        self._lease = lease
        self._places = self._all_places = places
        self._markers = markers
        self._waiting = waiting
        self._ring = ring
        self._held: dict[tuple[Any, int], Run] = {}
        self._suspects: set[Run] = set()
        self._ended: deque[tuple[Run, Exception | None]] = deque()
        self._unsure: list[ClaimedJob] = []
        self._one_by_one = False
        self._extend_at = monotonic()

    @property
    def busy(self) -> bool:
        """Whether it holds leases."""
        return bool(self._held or self._unsure)

    def poll(self, connection: Connection) -> bool:
        """Settle, extend and claim in one transaction; tell whether it is worth another look."""
        ended = self._take_ended()
        running = [run for run in self._held.values() if run not in ended]
        free = 0 if self._performer.stopping() else self._places - len(running)
        extending = bool(running) and monotonic() >= self._extend_at
        if not (ended or self._unsure or free > 0 or extending):
            return False
        report = Report()
        lost: list[Run] = []
        claimed: list[Run] = []
        try:
            with connection.begin(), explain_missing_tables():
                self._settle(connection, ended, report, lost)
                if extending:
                    self._extend(connection, running, lost)
                if free > 0:
                    claimed = self._claim(connection, free, len(running), report)
        except BaseException as error:
            # Whether it was committed is not known. To settle again what was settled does nothing;
            # what was claimed is given back, if it was.
            self._ended.extend(ended.items())
            self._unsure += [run.job for run in claimed]
            self._one_by_one = isinstance(error, DBAPIError) and not is_lost(error)
            raise
        self._one_by_one = False
        self._unsure.clear()
        if extending or not running:
            self._extend_at = monotonic() + self._lease.total_seconds() / _EXTENSIONS_PER_LEASE
        for run in ended:
            self._held.pop(_key(run.job), None)
            self._suspects.discard(run)
        for run in claimed:
            self._start(run)
        self._performer.tell(report)
        self.ran += len(report.results)
        for run in lost:
            self._lose(run)
        return len(claimed) == free > 0

    def _take_ended(self) -> dict[Run, Exception | None]:
        ended: dict[Run, Exception | None] = {}
        while self._ended:
            run, error = self._ended.popleft()
            if self._held.get(_key(run.job)) is run:
                ended.setdefault(run, error)
        return ended

    # Settle.

    def _settle(
        self,
        connection: Connection,
        ended: Mapping[Run, Exception | None],
        report: Report,
        lost: list[Run],
    ) -> None:
        if self._unsure:
            given_back = [(job, INTERRUPTED) for job in self._unsure]
            self._store.settle_leased(connection, given_back, self._performer.now())
        open_runs: list[Run] = []
        for run, error in ended.items():
            if run.settled:
                report.results.append((run.job, SUCCEEDED))
            elif isinstance(error, LeaseLostError):
                if error is not run.asked:
                    lost.append(run)
            else:
                open_runs.append(run)
        groups = [[run] for run in open_runs] if self._one_by_one else [open_runs]
        for group in groups:
            if not group:
                continue
            part = Report()
            try:
                with connection.begin_nested() if self._one_by_one else nullcontext():
                    written = self._write(connection, group, ended, part)
            except DBAPIError as error:
                if not self._one_by_one or is_lost(error):
                    raise
                # Its lease will run out, and it runs again.
                self._performer.events.emit("polling-error", error)
                continue
            report.results += [result for result in part.results if result[0].job_id in written]
            # Who cancels a leased job has archived it already.
            cancelled = {run for run in group if isinstance(ended[run], JobCancelledError)}
            known = written | {run.job.job_id for run in cancelled}
            report.failures += [f for f in part.failures if f.job.job_id in known]
            lost += [run for run in group if run.job.job_id not in known]
        if self._markers is not None and (ended or self._unsure):
            self._markers.remove(connection, [*(run.job for run in ended), *self._unsure])

    def _write(
        self,
        connection: Connection,
        group: Iterable[Run],
        ended: Mapping[Run, Exception | None],
        part: Report,
    ) -> set[Any]:
        for run in group:
            error = ended[run]
            if error is None:
                part.results.append((run.job, SUCCEEDED))
            else:
                self._performer.failed(connection, run.job, error, part)
        return self._store.settle_leased(connection, part.results, self._performer.now())

    # Extend.

    def _extend(self, connection: Connection, running: Iterable[Run], lost: list[Run]) -> None:
        held = {run.job: run for run in running if not isinstance(run.asked, LeaseLostError)}
        until = self._performer.now() + self._lease
        # A run that settles its job itself has left no row to extend.
        lost += [
            held[job]
            for job in self._store.extend(connection, list(held), until)
            if not held[job].settling
        ]

    def _lose(self, run: Run) -> None:
        self._performer.events.emit("lease-lost", **run.job.about())
        run.ask(LeaseLostError(_LOST))

    # Claim.

    def _claim(self, connection: Connection, free: int, running: int, report: Report) -> list[Run]:
        now = self._performer.now()
        claimed = self._store.claim(connection, free, now)
        self.due = NOTHING_WAITS
        if len(claimed) < free:
            self.due = self._store.next_due(connection, now)
        lapsed = self._judge(connection, claimed)
        for job in claimed:
            if reason := lapsed.killers.get(job.job_id):
                dead = job._replace(attempts=job.attempts - 1)
                self._performer.failed(connection, dead, WorkerDiedError(reason), report)
        if report_of_dead := [
            result for result in report.results if result[0].job_id in lapsed.killers
        ]:
            self._store.settle_leased(connection, report_of_dead, now)
        if lapsed.together is not None:
            self._places = min(self._all_places, lapsed.together)
        elif not self._suspects:
            self._places = self._all_places
        alive = [job for job in claimed if job.job_id not in lapsed.killers]
        taken = [
            job._replace(attempts=job.attempts - 1) if job.job_id in lapsed.suspects else job
            for job in alive[: max(0, self._places - running)]
        ]
        if not taken:
            return []
        self._store.lease(connection, taken, now + self._lease)
        if self._markers is not None:
            self._markers.place(connection, taken, running + len(taken), now)
        runs = self._performer.runs(connection, taken)
        self._suspects.update(run for run in runs if run.job.job_id in lapsed.suspects)
        return runs

    def _judge(self, connection: Connection, claimed: Sequence[ClaimedJob]) -> Lapsed:
        if self._markers is not None:
            return self._markers.judge(connection, claimed)
        # Only a lease that ran out leaves more attempts than the strategy allows.
        lapsed = Lapsed()
        for job in claimed:
            before = job.attempts - 1
            strategy = self._performer.strategy(job)
            if before and strategy is not None and strategy.delay_after(before) is None:
                lapsed.killers[job.job_id] = (
                    f"attempt {before} of this job never ended: its worker died or lost its lease"
                )
        return lapsed

    # Run.

    def _start(self, run: Run) -> None:
        self._held[_key(run.job)] = run
        try:
            self._waiting.spawn(partial(self._run, run), f"{run.job.job_type} {run.job.job_id}")
        except RuntimeError as error:  # no more threads
            self._performer.events.emit("polling-error", error)
            self._ended.append((run, JobInterruptedError("it could not be started")))

    def _run(self, run: Run) -> None:
        error: Exception | None = None
        try:
            self._performer.perform(run, self._session)
            run.settled = run.settling
        except CancelledError:
            error = JobInterruptedError("the event loop ends")
        except Exception as raised:
            error = raised
            if is_lost(raised):
                self._performer.events.emit("polling-error", raised)
                error = Snooze(_PAUSE_AFTER_A_LOST_CONNECTION)
        except BaseException as raised:
            error = RuntimeError(f"the handler raised {raised!r}")
            error.__cause__ = raised
        run.settling = run.settled
        self._ended.append((run, error))
        self._ring()

    @contextmanager
    def _session(self, run: Run) -> Generator[Session]:
        complete = partial(self._complete, run)
        with own_transaction(self._make_session, self._store.job_model, complete) as session:
            yield session

    def _complete(self, run: Run, connection: Connection) -> None:
        """Settle a job in the transaction of its handler's session."""
        if run.abandoned:
            msg = "the worker waits for it no longer"
            raise JobInterruptedError(msg)
        run.settling = True
        result = (run.job, SUCCEEDED)
        if not self._store.settle_leased(connection, [result], self._performer.now()):
            raise LeaseLostError(_LOST)

    # Between polls.

    def patience(self) -> float | None:
        """Return the most seconds until the next poll; None for as long as the worker likes."""
        return max(0.0, self._extend_at - monotonic()) if self._held else None

    def running(self) -> Iterable[Run]:
        """Return what runs at the moment."""
        return list(self._held.values())

    def give_up(self) -> int:
        """Let go of what is running; return how many handlers that leaves behind.

        The next poll gives their jobs back.
        """
        ended = {run for run, _ in list(self._ended)}
        left = [run for run in self.running() if run not in ended]
        for run in left:
            run.abandoned = True
            self._ended.append((run, JobInterruptedError("the worker stopped")))
        self._ring()
        return len(left)


def _key(job: ClaimedJob) -> tuple[Any, int]:
    return job.job_id, job.attempts


_LOST = (
    "the job was not settled before its lease ended: somebody else has it now, or has ended it; "
    "what this run wrote through its session is undone"
)
