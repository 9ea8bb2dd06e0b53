"""``worker.health()``: what it says of workers of each kind, and that it raises no false alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Health, JobMixin, QueueWorker, manage, utcnow
from sqlalchemy_proletarian.execution.runner import Runner
from sqlalchemy_proletarian.runtime.threads import Threads
from sqlalchemy_proletarian.worker import health, queue_watch
from sqlalchemy_proletarian.worker.activity import CALLED, WAITING
from sqlalchemy_proletarian.worker.loop import Loop
from sqlalchemy_proletarian.worker.pool import WorkerPool

from .kinds import COROUTINES, KINDS, Kind, event_loops, only
from .support import archived, eventually, put, succeed


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all times, so that seconds stand for minutes."""
    monkeypatch.setattr(health, "STANDSTILL", 0.4)
    monkeypatch.setattr(health, "NO_ANSWER", 0.3)
    monkeypatch.setattr(health, "HOPELESS", 1.5)
    monkeypatch.setattr(health, "_LATE", 0.5)
    monkeypatch.setattr(queue_watch, "INTERVAL", 0.1)


def look_for(seconds: float, worker: Any) -> list[Health]:
    """Look at a worker like a probe that is in a hurry, for some seconds."""
    found: list[Health] = []
    until = monotonic() + seconds
    while monotonic() < until:
        found.append(worker.health())
        sleep(0.02)
    return found


def becomes(worker: Any, condition: Callable[[Health], object]) -> Health:
    """Look at a worker until its health fulfils a condition, and return that health."""
    found: list[Health] = [worker.health()]

    def fulfils() -> object:
        found[0] = worker.health()
        return condition(found[0])

    eventually(fulfils, about=found)
    return found[0]


def test_the_states_of_a_worker(engine: Engine, kind: Kind) -> None:
    """It is ready only while it runs, and live unless it has stopped."""
    worker = kind.worker(engine, succeed)
    before = worker.health()
    assert (before.state, before.live, before.ready) == ("starting", True, False)
    assert before.problems == ("the worker has not started yet",)
    with worker:
        running = becomes(worker, lambda health: health.last_poll)
        assert (running.state, running.live, running.ready) == ("running", True, True)
        assert running.database_reachable
        assert running.problems == ()
        assert (running.members, running.members_alive) == (1, 1)
    after = worker.health()
    assert (after.state, after.live, after.ready) == ("stopped", False, False)
    with worker:
        assert becomes(worker, lambda health: health.ready).live


def test_a_worker_that_stops_is_not_ready_and_live(engine: Engine, kind: Kind) -> None:
    """The handlers that it waits for are no standstill, and members that have ended are no loss."""
    began, end = Event(), Event()

    def handler(job_type: str, payload: Any) -> None:
        began.set()
        end.wait(30)

    put(engine, "job")
    worker = kind.worker(engine, handler, threads=3)
    worker.start()
    assert began.wait(30)
    stopping = Thread(target=worker.stop)
    stopping.start()
    try:
        becomes(worker, lambda health: health.state == "stopping")
        seen = [found for found in look_for(1, worker) if found.state == "stopping"]
        assert not any(found.ready for found in seen)
        assert all(found.live for found in seen)
        assert seen[-1].running == 1
        assert "the worker is stopping" in seen[-1].problems
    finally:
        end.set()
        stopping.join()


def test_a_worker_that_never_ends_stopping_is_not_live(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to stop, of which nobody waits for the end."""
    monkeypatch.setattr(health, "LATE_STOP", 0.2)
    with QueueWorker(engine, succeed, shutdown_timeout=timedelta(seconds=0.2)) as worker:
        worker.request_stop()
        assert worker.health().live
        late = becomes(worker, lambda health: not health.live)
        assert "the worker has been stopping for" in late.problems[0]


def test_it_knows_polls_claims_and_handlers(engine: Engine, kind: Kind) -> None:
    began, end = Event(), Event()

    def handler(job_type: str, payload: Any) -> None:
        began.set()
        end.wait(30)

    before = utcnow()
    with kind.worker(engine, handler, threads=2) as worker:
        idle = becomes(worker, lambda health: health.last_poll)
        assert idle.last_claim is None
        assert before <= idle.last_poll <= utcnow()  # type: ignore[operator]
        put(engine, "job")
        assert began.wait(30)
        busy = becomes(worker, lambda health: health.running == 1)
        assert before <= busy.last_claim <= utcnow()  # type: ignore[operator]
        assert busy.last_claim >= idle.last_poll  # type: ignore[operator]
        end.set()
        becomes(worker, lambda health: health.running == 0)


@pytest.mark.parametrize("kind", [*KINDS], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_long_handler_is_no_reason(engine: Engine, kind: Kind, threads: int) -> None:
    """A handler may take many times as long as everything else, on all members or on one."""

    def handler(job_type: str, payload: Any) -> None:
        sleep(2.5)

    put(engine, "job")
    with kind.worker(engine, handler, threads=threads) as worker:
        becomes(worker, lambda health: health.running == 1)
        seen = look_for(2, worker)
        eventually(lambda: archived(engine))
        seen += look_for(0.5, worker)
    assert [found.problems for found in seen if not (found.live and found.ready)] == []


def test_an_idle_worker_is_well(engine: Engine, kind: Kind) -> None:
    """Members that wait for a commit, or for each other, wait longer than any limit."""
    with kind.worker(engine, succeed, threads=3, polling_interval=timedelta(minutes=5)) as worker:
        becomes(worker, lambda health: health.ready)
        seen = look_for(2, worker)
    assert [found.problems for found in seen if not (found.live and found.ready)] == []


@only(*(kind for kind in COROUTINES))
def test_a_blocked_event_loop_is_not_live(engine: Engine, kind: Kind) -> None:
    """A coroutine that blocks; afterwards the worker is live again."""
    began = Event()

    def handler(job_type: str, payload: Any) -> None:
        began.set()
        sleep(2)

    put(engine, "job")
    with kind.worker(engine, handler) as worker:
        assert began.wait(30)
        blocked = becomes(worker, lambda health: not health.live)
        assert "the event loop has been blocked for" in blocked.problems[0]
        assert not blocked.ready
        assert becomes(worker, lambda health: health.live).problems == ()
        becomes(worker, lambda health: health.ready)


@event_loops
def test_it_answers_while_the_event_loop_is_blocked(engine: Engine, kind: Kind) -> None:
    """At once, and the age of the oldest job is measured nevertheless."""
    began = Event()
    handlers = Handlers()

    @handlers("job")
    async def handler(payload: Any) -> None:
        began.set()
        sleep(2)  # noqa: ASYNC251 - it blocks the event loop

    put(engine, "job")
    with kind.worker(engine, handlers) as worker:
        assert began.wait(30)
        put(engine, "nobody's")
        started = monotonic()
        worker.health()
        assert monotonic() - started < 0.5
        becomes(worker, lambda health: health.oldest_due)
        assert not archived(engine)


@pytest.fixture
def _first_member_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    work = WorkerPool._work

    def first_ends(self: WorkerPool, runner: Runner) -> None:
        if runner is not self.runners[0]:
            work(self, runner)

    monkeypatch.setattr(WorkerPool, "_work", first_ends)


@pytest.mark.usefixtures("_first_member_ends")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_member_that_has_ended_is_not_live(engine: Engine, kind: Kind, threads: int) -> None:
    with kind.worker(engine, succeed, threads=threads) as worker:
        members = 1 if kind.leased else threads
        lost = becomes(worker, lambda health: not health.live)
        assert (lost.members, lost.members_alive) == (members, members - 1)
        assert lost.problems[0] == f"1 of {members} members have ended"
        assert not lost.ready


def test_members_of_which_none_looks_for_jobs_are_not_live(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost_call(self: Loop, runner: Runner, activity: Any, *_: int) -> None:
        activity.doing, activity.step = CALLED, 1
        self.over.wait(1)

    monkeypatch.setattr(Loop, "_wait", lost_call)
    with QueueWorker(engine, succeed, threads=2) as worker:
        lost = becomes(worker, lambda health: not health.live)
        assert "no member has looked for jobs for" in lost.problems[0]


def test_a_member_that_oversleeps_is_not_live(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def oversleep(self: Loop, runner: Runner, activity: Any, *_: int) -> None:
        activity.doing, activity.until, activity.step = WAITING, monotonic(), 1
        self.over.wait(3)

    monkeypatch.setattr(Loop, "_wait", oversleep)
    with QueueWorker(engine, succeed, shutdown_timeout=timedelta(seconds=5)) as worker:
        lost = becomes(worker, lambda health: not health.live)
        assert "a poll is" in lost.problems[0]


def test_a_poll_that_waits_for_the_database_is_not_ready(engine: Engine, kind: Kind) -> None:
    """A lock of the table, as during a migration: live for a long time, as a restart is no help."""
    with kind.worker(engine, succeed) as worker:
        becomes(worker, lambda health: health.ready)
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE proletarian.job IN ACCESS EXCLUSIVE MODE"))
            waits = becomes(worker, lambda health: not health.ready)
            assert waits.live
            assert not waits.database_reachable
            assert "the database has not answered for" in waits.problems[0]
            hopeless = becomes(worker, lambda health: not health.live)
            assert "the database has not answered for" in hopeless.problems[0]
        assert becomes(worker, lambda health: health.ready).problems == ()


def test_polls_that_fail_are_not_ready_and_live(
    engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors other than a lost connection, whose reason is in the log."""
    broken = True
    usable = Loop._is_usable

    def fails(self: Loop, *arguments: Any) -> bool:
        if broken:
            raise LookupError("secret")
        return usable(self, *arguments)

    monkeypatch.setattr(Loop, "_is_usable", fails)
    with kind.worker(engine, succeed) as worker:
        says = ("polling fails: LookupError",)
        fails_now = becomes(worker, lambda health: health.problems == says)
        assert (fails_now.live, fails_now.ready) == (True, False)
        broken = False
        becomes(worker, lambda health: health.ready)


def test_the_oldest_due_job_of_its_queues(engine: Engine, kind: Kind) -> None:
    """Jobs that run, are scheduled or are in other queues do not count; paused queues neither."""
    began, end = Event(), Event()
    handlers = Handlers()

    @handlers("job")
    def handler(payload: Any) -> None:
        began.set()
        end.wait(30)

    put(engine, "job")
    with kind.worker(engine, handlers, queues=["default", "other"]) as worker:
        assert began.wait(30)
        put(engine, "job", process_in=timedelta(hours=1))
        put(engine, "unknown", queue="elsewhere")
        sleep(0.3)
        look_for(0.5, worker)
        assert worker.health().oldest_due is None
        put(engine, "unknown", queue="other", priority=9)
        found = becomes(worker, lambda health: health.oldest_due)
        assert found.oldest_due is not None
        assert timedelta(0) < found.oldest_due < timedelta(seconds=20)
        later = found.oldest_due
        becomes(worker, lambda health: health.oldest_due and health.oldest_due > later)
        with Session(engine) as session, session.begin():
            manage.pause(session, "other")
        end.set()
        becomes(worker, lambda health: health.oldest_due is None)


def watches(engine: Engine, name: str) -> int:
    """Return how many connections of a worker measure its queues."""
    with engine.connect() as connection:
        found = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :name"
        return connection.scalar(text(found), {"name": f"{name}%statistics"}) or 0


def test_its_connection_is_open_only_while_somebody_asks(
    engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_watch, "ASKED", 0.5)
    with kind.worker(engine, succeed, name="asked") as worker:
        sleep(0.2)
        assert watches(engine, "asked") == 0
        for _ in range(2):
            becomes(worker, lambda _: watches(engine, "asked") == 1)
            look_for(1, worker)
            assert watches(engine, "asked") == 1
            eventually(lambda: watches(engine, "asked") == 0)
        becomes(worker, lambda _: watches(engine, "asked") == 1)
    eventually(lambda: watches(engine, "asked") == 0)


def test_its_connection_is_opened_again_when_it_is_lost(engine: Engine, kind: Kind) -> None:
    """The measurement fails, and the next one succeeds; the worker does not mind."""
    find = "FROM pg_stat_activity WHERE application_name LIKE 'lossy%statistics'"
    handlers = Handlers()
    handlers("job")(lambda payload: None)
    put(engine, "unknown")
    with kind.worker(engine, handlers, name="lossy") as worker:
        becomes(worker, lambda health: health.oldest_due)
        with engine.connect() as connection:
            lost = connection.scalar(text(f"SELECT pid {find}"))
            connection.execute(text(f"SELECT pg_terminate_backend(pid) {find}"))

        def is_replaced(_: Health) -> bool:
            with engine.connect() as connection:
                return connection.scalar(text(f"SELECT pid {find}")) not in {None, lost}

        becomes(worker, is_replaced)
        becomes(worker, lambda health: health.oldest_due)
        assert worker.health().ready


def test_it_answers_if_nothing_can_be_measured(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system cannot start another thread; later it can."""
    handlers = Handlers()
    handlers("job")(lambda payload: None)
    put(engine, "unknown")
    with QueueWorker(engine, handlers) as worker:
        with monkeypatch.context() as patch:

            def fails(*_: Any) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(Threads, "spawn_isolated", fails)
            assert becomes(worker, lambda health: health.ready).oldest_due is None
        becomes(worker, lambda health: health.oldest_due)


def test_nothing_is_measured_of_a_worker_that_has_stopped(engine: Engine, kind: Kind) -> None:
    worker = kind.worker(engine, succeed)
    check = worker._core.health_check
    assert check.counts(1) is None
    with worker:
        assert check.counts(10) == ()
        assert check._look_at_pool is not None
        watch = check._look_at_pool.watch()
    assert check.counts(1) is None
    assert watch.oldest_due() is None
    monotonic_before = monotonic()
    watch._counts.at = None
    assert watch.counts(10) == ()
    assert monotonic() - monotonic_before < 5


def test_many_threads_may_ask_while_it_starts_and_stops(engine: Engine, kind: Kind) -> None:
    errors: list[Exception] = []
    over = Event()
    worker = kind.worker(engine, succeed, threads=2)

    def ask() -> None:
        while not over.is_set():
            try:
                worker.health()
            except Exception as error:
                errors.append(error)

    askers = [Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(3):
            with worker:
                put(engine, "job")
                sleep(0.1)
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert errors == []
    eventually(lambda: watches(engine, worker.name[:40]) == 0)


def test_a_drain_is_live_and_ready(engine: Engine, kind: Kind) -> None:
    seen: list[Health] = []
    handlers = Handlers()
    put(engine, "job")

    @handlers("job")
    def handler(payload: Any) -> None:
        seen.extend(look_for(0.7, worker))

    worker = kind.worker(engine, handlers)
    worker.drain()
    assert {(found.state, found.live, found.ready) for found in seen} == {("running", True, True)}
    assert seen[-1].running == 1
    assert worker.health().state == "stopped"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    times = [1000.0]
    monkeypatch.setattr(health, "monotonic", lambda: times[0])
    return times  # type: ignore[return-value]


def test_a_process_that_was_frozen_is_no_standstill(clock: list[float]) -> None:
    """One look after a long time proves nothing; looking again and again does."""
    standstill = health._Standstill(60)
    standstill.look("same")
    clock[0] += 10_000
    standstill.look("same")
    assert not standstill.is_too_long
    standstill.look("other")
    for _ in range(7):
        clock[0] += 10
        standstill.look("other")
    assert standstill.is_too_long
    standstill.look(None)
    assert not standstill.is_too_long


def test_a_worker_of_own_tables_measures_without_markers(engine: Engine) -> None:
    """Jobs that run in transaction mode then count as due."""
    from .support import ArchivedEmailJob, EmailJob, Shop

    assert issubclass(EmailJob, JobMixin)
    Shop.metadata.create_all(engine)
    put(engine, "unknown", job_model=EmailJob)
    handlers = Handlers()
    handlers("job")(lambda payload: None)
    models: Any = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}
    try:
        with QueueWorker(engine, handlers, **models) as worker:
            becomes(worker, lambda health: health.oldest_due)
    finally:
        with engine.begin() as connection:
            connection.execute(EmailJob.__table__.delete())  # type: ignore[attr-defined]
