"""Compare the store with a model: several holders act in any order on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, create_engine, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, enqueue, enqueue_unique, manage
from sqlalchemy_proletarian.lifecycle.claimed import ClaimedJob, NextDue
from sqlalchemy_proletarian.lifecycle.outcomes import (
    INTERRUPTED,
    SUCCEEDED,
    Cancelled,
    Failed,
    Outcome,
    Retried,
    Snoozed,
)
from sqlalchemy_proletarian.store.open import open_store

from .fleet import until

QUEUES = ("urgent", "later")
SECOND = timedelta(seconds=1)
LEASE = 10 * SECOND
EXAMPLES, STEPS = 25, 40

EXAMPLES_PER_SECOND = 5
"""Examples that run in a second; used to convert the length of a soak into examples."""

QUEUE = st.sampled_from((*QUEUES, "of others"))
KEY = st.sampled_from((None, None, "a", "b"))
PRIORITY = st.sampled_from((0, 5, 9))
DELAY = st.sampled_from((-SECOND, 0 * SECOND, SECOND, LEASE))
MOSTLY = st.sampled_from((True, True, True, False))
LIMIT = st.integers(1, 4)
OUTCOMES: dict[str, Callable[[datetime], Outcome]] = {
    "success": lambda later: SUCCEEDED,
    "failure": lambda later: Failed("failed permanently"),
    "cancelled": lambda later: Cancelled("not needed"),
    "retry": lambda later: Retried(later, "failed"),
    "snooze": Snoozed,
    "interrupt": lambda later: INTERRUPTED,
}
HOWS = st.lists(st.tuples(st.sampled_from(list(OUTCOMES)), DELAY), min_size=1, max_size=4)
Hows: TypeAlias = Sequence[tuple[str, timedelta]]


@dataclass(frozen=True)
class Row:
    """The state of a queued job in the model."""

    queue: str
    priority: int
    process_at: datetime
    attempts: int = 0
    error: str | None = None
    unique_key: str | None = None
    lease_id: UUID | None = None

    def urgency(self) -> tuple[int, int, datetime]:
        return QUEUES.index(self.queue), self.priority, self.process_at


@dataclass(frozen=True)
class End:
    """The state of a finished job in the model."""

    status: str
    attempts: int
    process_at: datetime
    error: str | None


@dataclass(eq=False)
class Holder:
    """A worker of the model, which claims jobs over its own connection."""

    connection: Connection
    leased: bool
    held: list[ClaimedJob] = field(default_factory=list)
    unsure: list[ClaimedJob] = field(default_factory=list)
    """Claims that may or may not have been committed."""


class StoreMachine(RuleBasedStateMachine):
    """Two holders in transaction mode and two in lease mode share the tables.

    The test sets ``engine``.
    """

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.queued: dict[UUID, Row] = {}
        self.ended: dict[UUID, End] = {}
        self.stores = {
            leased: open_store(self.engine.dialect, Job, ArchivedJob, QUEUES, leased=leased)
            for leased in (False, True)
        }
        self.holders = [
            Holder(self.engine.connect(), leased) for leased in (False, False, True, True)
        ]
        self.reader = self.engine.connect()

    @initialize()
    def empty(self) -> None:
        """Empty the tables."""
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM proletarian.job"))
            connection.execute(text("DELETE FROM proletarian.archived_job"))

    def teardown(self) -> None:
        for holder in self.holders:
            holder.connection.close()
        self.reader.close()

    # Queries and updates of the model.

    def locked(self) -> set[UUID]:
        """Return the ids of jobs whose rows are locked by transactions."""
        return {job.job_id for holder in self.holders if not holder.leased for job in holder.held}

    def able_to_claim(self) -> list[Holder]:
        """Return the holders that may claim jobs."""
        return [holder for holder in self.holders if holder.leased or not holder.held]

    def holding(self, *, leased: bool = False, unsure: bool = False) -> list[Holder]:
        """Return the holders that hold jobs.

        :param leased: only those in lease mode.
        :param unsure: instead, those whose claims may or may not have been committed.
        """
        return [
            holder
            for holder in self.holders
            if (holder.unsure if unsure else holder.held) and holder.leased >= leased
        ]

    def still_holds(self, holder: Holder, job: ClaimedJob) -> bool:
        """Return whether ``holder`` still holds ``job``."""
        row = self.queued.get(job.job_id)
        return row is not None and (row.lease_id == job.lease_id or not holder.leased)

    def settled(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Update the model as settling updates the tables."""
        row = self.queued[job.job_id]
        process_at = job.process_at or row.process_at
        error = outcome.error or row.error
        match outcome:
            case Retried() | Snoozed():
                attempts = job.attempts if isinstance(outcome, Retried) else job.attempts - 1
                self.queued[job.job_id] = replace(
                    row,
                    attempts=attempts,
                    process_at=outcome.process_at,
                    error=error,
                    lease_id=None,
                )
            case _ if outcome is INTERRUPTED:
                if job.lease_id is not None:
                    self.queued[job.job_id] = replace(row, process_at=process_at, lease_id=None)
            case _:
                del self.queued[job.job_id]
                assert job.job_id not in self.ended
                status = str(outcome.status.value)  # type: ignore[union-attr]
                self.ended[job.job_id] = End(status, job.attempts, process_at, error)

    def due(self) -> list[tuple[int, int, datetime]]:
        """Return the sort keys of the jobs that can be claimed, the most urgent first."""
        return sorted(
            row.urgency()
            for job_id, row in self.queued.items()
            if row.queue in QUEUES and row.process_at <= self.now and job_id not in self.locked()
        )

    # Producers and operators.

    @rule(jobs=st.lists(st.tuples(QUEUE, PRIORITY, DELAY, KEY), min_size=1, max_size=4))
    def enqueue(self, jobs: list[tuple[str, int, timedelta, str | None]]) -> None:
        """Enqueue jobs, except those whose key is taken."""
        with Session(self.engine) as session, session.begin():
            for queue, priority, delay, key in jobs:
                options: dict[str, Any] = {
                    "queue": queue,
                    "priority": priority,
                    "process_in": delay,
                    "clock": lambda: self.now,
                    "notify": False,
                }
                if key is None:
                    job = enqueue(session, "job", **options)
                else:
                    result = enqueue_unique(session, "job", unique_key=key, **options)
                    keys = {(row.queue, row.unique_key) for row in self.queued.values()}
                    assert result.created == ((queue, key) not in keys)
                    job = result.job if result.created else None
                if job is not None:
                    process_at = max(self.now, self.now + delay)
                    row = Row(queue, priority, process_at, unique_key=key)
                    self.queued[job.job_id] = row

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel a job, unless a transaction has locked it."""
        job_id = data.draw(st.sampled_from(sorted(self.queued)))
        with Session(self.engine) as session, session.begin():
            done = manage.cancel(session, job_id, reason="enough", clock=lambda: self.now)
        if job_id in self.locked():
            assert done == "requested"
            return
        assert done == "cancelled"
        row = self.queued.pop(job_id)
        attempts = row.attempts + (row.lease_id is not None)
        self.ended[job_id] = End("cancelled", attempts, row.process_at, "enough")

    @rule(by=st.sampled_from((SECOND, LEASE / 2, LEASE, 2 * LEASE)))
    def time_passes(self, by: timedelta) -> None:
        """Advance the clock: jobs become due and leases expire."""
        self.now += by

    # Holders.

    @precondition(lambda self: self.able_to_claim() and self.due())
    @rule(data=st.data(), limit=LIMIT, commits=MOSTLY, acknowledged=MOSTLY)
    def claim(self, data: st.DataObject, limit: int, commits: bool, acknowledged: bool) -> None:
        """Claim due jobs, the most urgent first; the commit may fail or remain unacknowledged."""
        holder = data.draw(st.sampled_from(self.able_to_claim()))
        self.claim_by(holder, limit, commits=commits, acknowledged=acknowledged)

    def claim_by(self, holder: Holder, limit: int, *, commits: bool, acknowledged: bool) -> None:
        store, connection = self.stores[holder.leased], holder.connection
        claimed = store.claim(connection, limit, self.now, self.now)
        rows = [self.queued[job.job_id] for job in claimed]
        assert [row.urgency() for row in rows] == self.due()[:limit]
        assert [job.attempts for job in claimed] == [row.attempts + 1 for row in rows]
        loaded = store.rows.load(connection, claimed)
        assert [loaded[job.job_id].attempts for job in claimed] == [job.attempts for job in claimed]
        if not holder.leased:
            if commits:
                holder.held = claimed
            else:
                connection.rollback()
            return
        until = self.now + LEASE
        assert [job.process_at for job in claimed] == [row.process_at for row in rows]
        assert [job.expired for job in claimed] == [row.lease_id is not None for row in rows]
        claimed = store.lease(connection, claimed, until)
        if not commits:
            connection.rollback()
        else:
            connection.commit()
            for job in claimed:
                self.queued[job.job_id] = replace(
                    self.queued[job.job_id], lease_id=job.lease_id, process_at=until
                )
        if not acknowledged:
            holder.unsure += claimed
        elif commits:
            holder.held += claimed

    @precondition(lambda self: self.holding(leased=True))
    @rule(data=st.data(), hows=HOWS)
    def overtake(self, data: st.DataObject, hows: Hows) -> None:
        """Settle jobs that others have claimed since, which would rarely happen by chance."""
        late = data.draw(st.sampled_from(self.holding(leased=True)))
        self.now += 2 * LEASE
        for holder in self.able_to_claim():
            if holder is not late and self.due():
                self.claim_by(holder, 2, commits=True, acknowledged=True)
        self.settle_by(late, hows, commits=True)

    @precondition(lambda self: self.holding(unsure=True))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Release claims that may have been committed."""
        holder = data.draw(st.sampled_from(self.holding(unsure=True)))
        self.stores[True].release(holder.connection, holder.unsure)
        holder.connection.commit()
        for job in holder.unsure:
            if self.still_holds(holder, job) and job.job_id not in self.locked():
                self.settled(job, INTERRUPTED)
        holder.unsure = []

    @precondition(lambda self: self.holding())
    @rule(data=st.data(), hows=HOWS, commits=MOSTLY)
    def settle(self, data: st.DataObject, hows: Hows, commits: bool) -> None:
        """Settle some of a holder's jobs; the holder may crash before it commits."""
        self.settle_by(data.draw(st.sampled_from(self.holding())), hows, commits=commits)

    def settle_by(self, holder: Holder, hows: Hows, *, commits: bool) -> None:
        results = [
            (job, OUTCOMES[name](self.now + delay))
            for job, (name, delay) in zip(holder.held, hows, strict=False)
        ]
        store, connection = self.stores[holder.leased], holder.connection
        mine = [result for result in results if self.still_holds(holder, result[0])]
        if holder.leased:
            free = [result for result in mine if result[0].job_id not in self.locked()]
            # Waiting for a lock of another holder would deadlock the test.
            written = store.settle_leased(connection, results, self.now, wait=free == mine)
            assert written == {job.job_id for job, _ in free}
            mine = free
        else:
            assert mine == results
            store.settle(connection, results, self.now)
        if not commits:
            self.replace_holder(holder)
            return
        connection.commit()
        for job, outcome in mine:
            self.settled(job, outcome)
        # The commit of a transaction releases all its jobs.
        holder.held = holder.held[len(results) :] if holder.leased else []

    @precondition(lambda self: self.holding(leased=True))
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        """Extend a holder's leases, and check which are reported as lost."""
        holder = data.draw(st.sampled_from(self.holding(leased=True)))
        until = self.now + LEASE
        lost = self.stores[True].extend(holder.connection, holder.held, until)
        holder.connection.commit()
        kept = [job for job in holder.held if self.still_holds(holder, job)]
        assert [job for job in holder.held if job not in lost] == kept
        for job in kept:
            if job.job_id not in self.locked():
                self.queued[job.job_id] = replace(self.queued[job.job_id], process_at=until)
        holder.held = kept

    @precondition(lambda self: self.holding())
    @rule(data=st.data(), loses_its_connection=st.booleans())
    def crash(self, data: st.DataObject, loses_its_connection: bool) -> None:
        """Crash a holder: its locks are released at once, its leases expire later."""
        holder = data.draw(st.sampled_from(self.holding()))
        if loses_its_connection:
            backend = holder.connection.scalar(text("SELECT pg_backend_pid()"))
            holder.connection.invalidate()
            until(lambda: not self.backend_exists(backend), 30)  # the server has to notice
        self.replace_holder(holder)

    def backend_exists(self, backend: int) -> bool:
        """Return whether the server still has the backend process of a connection."""
        there = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        with self.engine.connect() as connection:
            return bool(connection.scalar(there, {"pid": backend}))

    def replace_holder(self, holder: Holder) -> None:
        """Replace a holder with a new one."""
        holder.connection.close()
        self.holders[self.holders.index(holder)] = Holder(self.engine.connect(), holder.leased)

    # What is always true.

    @invariant()
    def next_due_matches_the_model(self) -> None:
        """``next_due`` returns whether jobs are overdue and when the next job becomes due."""
        times = [row.process_at for row in self.queued.values() if row.queue in QUEUES]
        overdue = any(process_at <= self.now for process_at in times)
        at = min((process_at for process_at in times if process_at > self.now), default=None)
        assert self.stores[True].next_due(self.reader, self.now) == NextDue(overdue, at)

    @invariant()
    def tables_match_the_model(self) -> None:
        """Each job is in exactly one table, with the attempts and times of the model."""
        queued = {
            row.job_id: Row(*row[1:])
            for row in self.reader.execute(
                select(
                    Job.job_id,
                    Job.queue,
                    Job.priority,
                    Job.process_at,
                    Job.attempts,
                    Job.error,
                    Job.unique_key,
                    Job.lease_id,
                )
            )
        }
        ended = {
            row.job_id: End(*row[1:])
            for row in self.reader.execute(
                select(
                    ArchivedJob.job_id,
                    ArchivedJob.status,
                    ArchivedJob.attempts,
                    ArchivedJob.process_at,
                    ArchivedJob.error,
                )
            )
        }
        self.reader.rollback()
        assert queued == self.queued
        assert ended == self.ended
        assert not queued.keys() & ended.keys()


def test_store(engine: Engine, soak: float) -> None:
    """Whatever holders do and however they crash, each job is in the right table exactly once."""
    # No statement should wait for a lock; the timeout turns a wait into an error.
    engine_with_timeout = create_engine(
        engine.url, connect_args={"options": "-c lock_timeout=2000"}
    )
    machine = type("Machine", (StoreMachine,), {"engine": engine_with_timeout})
    length = settings(
        max_examples=max(EXAMPLES, int(soak * EXAMPLES_PER_SECOND)),
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(machine, settings=length)
    finally:
        engine_with_timeout.dispose()


def test_a_job_claimed_again_after_a_lost_lease(engine: Engine) -> None:
    """A worker that claims a job again after losing its lease learns that the first one is lost."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    store = open_store(engine.dialect, Job, ArchivedJob, QUEUES, leased=True)
    with Session(engine) as session, session.begin():
        enqueue(session, "job", queue=QUEUES[0], clock=lambda: now)
    leases: list[ClaimedJob] = []
    with engine.connect() as connection:
        for at in (now, now + 2 * LEASE):
            claimed = store.claim(connection, 1, at, at)
            leases += store.lease(connection, claimed, at + LEASE)
        first, second = leases
        for held in (leases, leases[::-1]):
            assert list(store.extend(connection, held, now + 4 * LEASE)) == [first]
        assert not store.extend(connection, [second], now + 4 * LEASE)
