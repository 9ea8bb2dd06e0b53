from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Event
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    Handlers,
    Job,
    JobMixin,
    ModelError,
    PayloadError,
    PrivilegeError,
    QueueWorker,
    RecurringJob,
    RecurringJobMixin,
    TablesMissingError,
    manage,
    migrate,
)
from sqlalchemy_proletarian import asyncio as awaitable
from sqlalchemy_proletarian.errors import HandlerError
from sqlalchemy_proletarian.periodic.agreement import INTERVAL
from sqlalchemy_proletarian.periodic.definitions import GONE

from .kinds import Kind
from .loops import in_a_loop
from .support import MINUTE, SECOND, Log, ManualClock, archived, eventually, queued, rows

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SOON = SECOND / 50


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still at 12:00:30."""
    clock = ManualClock()
    clock.now = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
    return clock


def at(hour: int, minute: int = 0, day: int = 1) -> datetime:
    return datetime(2026, 5, day, hour, minute, tzinfo=UTC)


def minutely(name: str = "report", every: timedelta = MINUTE, **options: Any) -> Handlers:
    """Return handlers with one recurring job, which does nothing."""
    handlers = Handlers()

    @handlers.recurring(name, every=every, **options)
    def handler(payload: Any) -> None: ...

    return handlers


def schedules(engine: Engine) -> dict[str, RecurringJob]:
    return {row.name: row for row in rows(engine, RecurringJob, RecurringJob.name)}


def change(engine: Engine, name: str, **values: Any) -> None:
    """Change a row as an operator does."""
    with engine.begin() as connection:
        changed = update(RecurringJob).where(RecurringJob.name == name).values(**values)
        assert connection.execute(changed).rowcount == 1


def keys(engine: Engine) -> list[str]:
    """Return the keys of all jobs, queued or finished."""
    return sorted(str(job.unique_key) for job in [*queued(engine), *archived(engine)])


# Ticks.


def test_each_tick_becomes_a_job(engine: Engine, clock: ManualClock, kind: Kind):
    """The job has the payload, queue and priority of its recurring job, and is due at the tick."""
    handlers, ran = Handlers(), []

    @handlers.recurring("often", every=MINUTE, payload={"n": 1}, queue="fast", priority=2)
    @handlers.recurring("daily", cron="0 3 * * *", timezone="Europe/Oslo", payload={"n": 2})
    @handlers("report", queue="slow")
    def report(payload: dict[str, int], job: Job) -> None:
        ran.append((payload["n"], job.queue, job.priority, job.process_at, job.unique_key))

    options: dict[str, Any] = {"queues": ["fast", "slow"], "clock": clock}
    assert kind.run_all(engine, handlers, **options) == 0
    assert {name: row.next_at for name, row in schedules(engine).items()} == {
        "often": at(12, 1),
        "daily": at(1, day=2),
    }
    clock.now = at(12, 1)
    assert kind.run_all(engine, handlers, **options) == 1
    clock.now = at(1, day=2)
    assert kind.run_all(engine, handlers, **options) == 2
    assert ran == [
        (1, "fast", 2, at(12, 1), "often@2026-05-01T12:01:00Z"),
        (1, "fast", 2, at(1, day=2), "often@2026-05-02T01:00:00Z"),
        (2, "slow", 5, at(1, day=2), "daily@2026-05-02T01:00:00Z"),
    ]
    assert schedules(engine)["daily"].last_at == at(1, day=2)
    assert schedules(engine)["daily"].next_at == at(1, day=3)


def test_a_running_worker_enqueues_and_runs_ticks(engine: Engine, kind: Kind):
    """It wakes up at the tick, long before it would poll for jobs."""
    ran: list[datetime] = []
    handlers = Handlers()

    @handlers.recurring("beat", every=SECOND)
    def beat(payload: None, job: Job) -> None:
        ran.append(job.process_at)

    with kind.worker(engine, handlers, polling_interval=MINUTE):
        eventually(lambda: len(ran) >= 3)
    assert [b - a for a, b in pairwise(ran[:3])] == [SECOND, SECOND]


def test_a_busy_worker_enqueues_ticks(engine: Engine, clock: ManualClock):
    """A tick does not wait for a handler, because another worker may run its job."""
    busy, release = Event(), Event()
    handlers = minutely()

    @handlers("long")
    def long(payload: None) -> None:
        busy.set()
        release.wait()

    with Session(engine) as session, session.begin():
        long.enqueue(session, None, clock=clock)
    with QueueWorker(engine, handlers, clock=clock, polling_interval=SOON):
        try:
            eventually(busy.is_set)
            clock.now = at(12, 1)
            eventually(lambda: len(queued(engine)) == 2)
        finally:
            release.set()


def test_a_tick_notifies_other_workers(engine: Engine, clock: ManualClock):
    """They need not poll."""
    ran = Event()
    others = Handlers()

    @others("report")
    def report(payload: None) -> None:
        ran.set()

    handlers = Handlers()

    @handlers.recurring("report", every=MINUTE)
    def never(payload: None) -> None: ...

    slow = QueueWorker(engine, others, polling_interval=10 * MINUTE)
    ticking = QueueWorker(engine, handlers, queues="other", clock=clock, polling_interval=SOON)
    with slow, ticking:
        listener = slow._core.pool.listener  # type: ignore[union-attr]
        eventually(lambda: listener is not None and listener.active)
        eventually(lambda: schedules(engine))
        clock.now = at(12, 1)
        eventually(ran.is_set)


def test_a_tick_that_is_still_queued_is_not_enqueued_again(engine: Engine, clock: ManualClock):
    """An operator may set ``next_at`` back."""
    worker = QueueWorker(engine, minutely(), queues="other", clock=clock)
    worker.drain()
    clock.now = at(12, 1)
    worker.drain()
    change(engine, "report", next_at=at(12, 1))
    worker.drain()
    assert keys(engine) == ["report@2026-05-01T12:01:00Z"]
    assert schedules(engine)["report"].next_at == at(12, 2)


@pytest.mark.parametrize(("catch_up", "runs"), [("last", 1), ("none", 0), ("all", 150)])
def test_what_runs_after_a_downtime(engine: Engine, clock: ManualClock, catch_up: Any, runs: int):
    """By default the last tick runs, once; the others are not lost only with "all"."""
    handlers = minutely(catch_up=catch_up)
    QueueWorker(engine, handlers, clock=clock).drain()
    every = 2 * MINUTE if catch_up == "none" else MINUTE
    change(engine, "report", interval_seconds=int(every.total_seconds()), next_at=at(12, 2))
    clock.now = at(12, 2) + 149 * MINUTE + 50 * SECOND
    if catch_up == "none":
        clock.now += MINUTE - 50 * SECOND + MINUTE + 59 * SECOND
    assert QueueWorker(engine, handlers, clock=clock).drain() == runs
    assert schedules(engine)["report"].next_at > clock.now
    assert len(set(keys(engine))) == runs


# A worker without recurring jobs.


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Yield a list to which each statement on connections of an engine is added."""
    sent: list[str] = []

    def record(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", record)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", record)


def test_a_worker_without_recurring_jobs_does_not_use_the_table(empty_database: URL):
    """The table need not exist, and no statement names it."""
    migrate.upgrade(empty_database)
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE proletarian.recurring"))
    ran = Event()
    handlers = Handlers()

    @handlers("report")
    def report(payload: None) -> None:
        ran.set()

    with statements(engine) as sent, QueueWorker(engine, handlers):
        with Session(engine) as session, session.begin():
            report.enqueue(session, None)
        eventually(ran.is_set)
    assert [statement for statement in sent if "recurring" in statement] == []
    with pytest.raises(TablesMissingError, match=r"proletarian\.recurring does not exist"):
        QueueWorker(engine, minutely()).start()
    with (
        Session(engine) as session,
        pytest.raises(TablesMissingError, match="proletarian migrate upgrade"),
    ):
        manage.schedule(session, "name", "report", every=MINUTE)
    engine.dispose()


def test_recurring_jobs_can_be_left_to_other_workers(engine: Engine, clock: ManualClock):
    """With ``recurring_job_model=None``, a worker enqueues no ticks."""
    QueueWorker(engine, minutely(), clock=clock, recurring_job_model=None).drain()
    assert schedules(engine) == {}


# Code and table agree.


class Releases:
    """Workers of several releases, each of which checks its definitions when it is called."""

    def __init__(self, engine: Engine, clock: ManualClock) -> None:
        self.engine, self.clock, self.log = engine, clock, Log()

    def start(self, handlers: Handlers) -> Callable[[], None]:
        """Return a function that does what a running worker does each minute."""
        from sqlalchemy_proletarian.runtime.threads import Threads

        worker = QueueWorker(self.engine, handlers, clock=self.clock, log=self.log)
        threads = Threads()
        service = worker._core._assembly.pool(threads, worker._invoke, threads.flag())._recurring
        assert service is not None
        service.run_once()
        return service.run_once

    def minutes(self, count: int, *workers: Callable[[], None]) -> None:
        """Let minutes pass, in which these workers are running."""
        for _ in range(count):
            self.clock.advance(INTERVAL)
            for work in workers:
                work()

    def changes(self) -> list[tuple[str, str]]:
        """Return the changes of the table since the last call."""
        found = [(data["recurring"], data["change"]) for data in self.log.data("recurring-changed")]
        self.log.entries.clear()
        return found


@pytest.fixture
def releases(engine: Engine, clock: ManualClock) -> Releases:
    return Releases(engine, clock)


def test_a_changed_definition_is_taken_over_at_once(engine: Engine, releases: Releases):
    """A new timing begins with its first tick after now; otherwise the next tick stays."""
    releases.start(minutely(every=HOUR))
    releases.start(minutely(every=HOUR, payload="new"))
    row = schedules(engine)["report"]
    assert (row.payload, row.next_at) == ('"new"', at(13))
    releases.start(minutely(every=2 * HOUR))
    row = schedules(engine)["report"]
    assert (row.payload, row.next_at, row.interval_seconds) == ("null", at(14), 7200)
    assert releases.changes() == [("report", "added"), ("report", "changed"), ("report", "changed")]


def test_a_deployment_without_changes_writes_nothing(engine: Engine, releases: Releases):
    releases.start(minutely())
    before = schedules(engine)["report"].__dict__.copy()
    releases.start(minutely())
    after = schedules(engine)["report"].__dict__
    del before["_sa_instance_state"]
    assert {name: after[name] for name in before} == before


def test_what_an_operator_has_changed_survives_a_deployment(engine: Engine, releases: Releases):
    """A pause survives any deployment; other changes until code changes the definition."""
    releases.start(minutely())
    change(engine, "report", paused=True, interval_seconds=120, next_at=None)
    releases.start(minutely())
    row = schedules(engine)["report"]
    assert (row.paused, row.interval_seconds, row.next_at) == (True, 120, at(12, 2))
    releases.start(minutely(payload="new"))
    row = schedules(engine)["report"]
    assert (row.paused, row.interval_seconds, row.next_at) == (True, 60, at(12, 1))
    assert keys(engine) == []


def test_two_releases_side_by_side_do_not_fight(engine: Engine, releases: Releases):
    """The later release decides, also when a worker of the earlier one is restarted."""
    old, new = minutely(every=HOUR), minutely(every=2 * HOUR)
    old_worker = releases.start(old)
    new_worker = releases.start(new)
    releases.minutes(5, old_worker, new_worker)
    restarted = releases.start(old)
    releases.minutes(5, old_worker, new_worker, restarted)
    assert releases.changes() == [("report", "added"), ("report", "changed")]
    assert schedules(engine)["report"].interval_seconds == 7200


def test_a_release_that_was_rolled_back_is_replaced(engine: Engine, releases: Releases):
    """The earlier definition is back two minutes after the last worker of the later release."""
    old_worker = releases.start(minutely(every=HOUR))
    releases.start(minutely(every=2 * HOUR))
    assert GONE == 2 * INTERVAL
    releases.minutes(2, old_worker)
    assert schedules(engine)["report"].interval_seconds == 7200
    releases.minutes(1, old_worker)
    assert schedules(engine)["report"].interval_seconds == 3600
    releases.changes()
    again = releases.start(minutely(every=2 * HOUR))
    releases.minutes(5, old_worker, again)
    assert releases.changes() == []  # it was replaced, and workers with the earlier one run


def test_a_removed_definition_is_removed(engine: Engine, releases: Releases):
    """Not while a worker still has it, and not just because all workers were stopped."""
    old, new = minutely("old"), minutely("new")
    old_worker = releases.start(old)
    new_worker = releases.start(new)
    releases.minutes(5, old_worker, new_worker)
    assert set(schedules(engine)) == {"old", "new"}
    releases.minutes(2, new_worker)
    assert set(schedules(engine)) == {"old", "new"}
    releases.minutes(1, new_worker)
    assert set(schedules(engine)) == {"new"}
    # A downtime of all workers: the first one to start does not remove what the others define.
    releases.clock.advance(HOUR)
    other_worker = releases.start(minutely("other"))
    new_worker = releases.start(new)
    releases.minutes(5, other_worker, new_worker)
    assert set(schedules(engine)) == {"new", "other"}


def test_a_row_that_code_does_not_own_is_never_removed(engine: Engine, releases: Releases):
    """Neither those of users and other programs, nor a paused one."""
    with Session(engine) as session, session.begin():
        manage.schedule(session, "of a user", "report", every=MINUTE)
    handlers = Handlers(owner="billing")
    handlers.recurring("of billing", every=MINUTE)(lambda payload: None)
    releases.start(handlers)
    releases.start(minutely("paused"))
    change(engine, "paused", paused=True)
    worker = releases.start(minutely())
    releases.minutes(10, worker)
    assert set(schedules(engine)) == {"of a user", "of billing", "paused", "report"}


def test_a_name_of_another_owner_is_reported_and_left_alone(engine: Engine, releases: Releases):
    """A row of another program is taken over when no worker of that program is left."""
    with Session(engine) as session, session.begin():
        manage.schedule(session, "report", "of a user", every=HOUR)
    worker = releases.start(minutely())
    releases.minutes(5, worker)
    (data,) = releases.log.data("recurring-error")
    assert "'report' of code (owner 'code') has the name of a row of manage" in str(data["error"])
    assert schedules(engine)["report"].job_type == "of a user"
    with Session(engine) as session, session.begin():
        assert manage.unschedule(session, "report")
    renamed = Handlers(owner="renamed")
    renamed.recurring("report", every=2 * HOUR)(lambda payload: None)
    releases.minutes(1, worker)
    new_worker = releases.start(renamed)
    assert schedules(engine)["report"].owner == "code"
    releases.minutes(4, new_worker)
    row = schedules(engine)["report"]
    assert (row.owner, row.interval_seconds) == ("renamed", 7200)


def test_two_workers_that_start_at_once_write_each_row_once(engine: Engine, clock: ManualClock):
    log = Log()
    workers = [QueueWorker(engine, minutely(), clock=clock, log=log) for _ in range(6)]
    for worker in workers:
        worker.start()
    eventually(lambda: schedules(engine))
    for worker in workers:
        worker.stop()
    assert [data["change"] for data in log.data("recurring-changed")] == ["added"]


# Operators.


def test_a_paused_row_has_no_jobs_and_continues_with_the_next_tick(
    engine: Engine, clock: ManualClock
):
    """The ticks of the pause are not made up for."""
    worker = QueueWorker(engine, minutely(catch_up="all"), clock=clock)
    worker.drain()
    change(engine, "report", paused=True)
    clock.now = at(13)
    assert worker.drain() == 0
    change(engine, "report", paused=False)
    assert worker.drain() == 0
    clock.now = at(13, 1)
    assert worker.drain() == 1
    assert keys(engine) == ["report@2026-05-01T13:01:00Z"]


def test_a_row_that_an_operator_inserts_works(engine: Engine, clock: ManualClock):
    """Three values are enough."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO proletarian.recurring (name, cron, job_type, payload) "
                "VALUES ('by hand', '*/5 * * * *', 'report', '7')"
            )
        )
    payloads = []
    handlers = Handlers()

    @handlers("report")
    def report(payload: int) -> None:
        payloads.append(payload)

    worker = QueueWorker(engine, handlers, clock=clock, recurring_job_model=RecurringJob)
    worker.drain()
    clock.now = at(12, 5)
    worker.drain()
    assert payloads == [7]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interval_seconds": None, "cron": "every day"}, "cron 'every day' has 2 fields"),
        ({"interval_seconds": None, "cron": "61 * * * *"}, "Bad minute"),
        ({"interval_seconds": None}, "interval_seconds must be positive"),
        ({"catch_up": "perhaps"}, "catch_up must be"),
        (
            {"interval_seconds": None, "cron": "0 3 * * *", "time_zone": "Mars/Olympus"},
            "no time zone 'Mars/Olympus'",
        ),
    ],
)
def test_a_row_that_is_not_valid_is_reported_and_delays_no_other(
    engine: Engine, clock: ManualClock, values: Mapping[str, Any], message: str
):
    """It is reported once, and works again when it is corrected."""
    log = Log()
    handlers = minutely()
    handlers.recurring("wrong", every=MINUTE)(lambda payload: None)
    QueueWorker(engine, handlers, clock=clock).drain()
    change(engine, "wrong", **values)
    with QueueWorker(engine, handlers, clock=clock, log=log, polling_interval=SOON):
        for minute in (1, 2, 3):
            clock.now = at(12, minute)
            eventually(lambda: len(archived(engine)) == minute)  # noqa: B023
        right = {"cron": None, "time_zone": "UTC", "catch_up": "last"}
        change(engine, "wrong", interval_seconds=60, **right)
        eventually(lambda: len(archived(engine)) == 4)
    errors = log.data("recurring-error")
    assert [data["recurring"] for data in errors] == ["wrong"]
    assert message in str(errors[0]["error"])


def test_what_the_database_rejects_delays_no_other(engine: Engine, clock: ManualClock):
    """The transaction of a recurring job is its own."""
    log = Log()
    handlers = minutely()
    handlers.recurring("wrong", every=MINUTE)(lambda payload: None)
    worker = QueueWorker(engine, handlers, clock=clock, log=log)
    worker.drain()
    with engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE proletarian.job ADD CONSTRAINT odd CHECK (job_type <> 'wrong')")
        )
    try:
        clock.now = at(12, 1)
        assert worker.drain() == 1
        (data,) = log.data("recurring-error")
        assert (data["recurring"], "odd" in str(data["error"])) == ("wrong", True)
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE proletarian.job DROP CONSTRAINT odd"))


def test_a_row_that_a_user_is_changing_is_passed_over(engine: Engine, clock: ManualClock):
    """The worker does not wait for the user's transaction, and sees what it commits."""
    handlers = minutely()
    with Session(engine) as session, session.begin():
        manage.schedule(session, "user", "report", "old", every=MINUTE, clock=clock)
    with QueueWorker(engine, handlers, clock=clock, polling_interval=SOON):
        with Session(engine) as session, session.begin():
            manage.schedule(session, "user", "report", "new", every=MINUTE, clock=clock)
            eventually(lambda: "report" in schedules(engine))
            clock.now = at(12, 1)
            eventually(lambda: archived(engine))
            assert keys(engine) == ["report@2026-05-01T12:01:00Z"]
        eventually(lambda: len(archived(engine)) == 2)
    assert {job.payload for job in archived(engine)} == {"null", '"new"'}


# Connections.


def test_ticks_continue_after_the_connection_was_lost(engine: Engine, clock: ManualClock):
    """No tick is lost."""
    handlers = minutely(catch_up="all")
    with QueueWorker(engine, handlers, clock=clock, polling_interval=SOON):
        for minute in range(1, 6):
            eventually(lambda: schedules(engine))
            with engine.begin() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name LIKE '% recurring'"
                    )
                )
            clock.now = at(12, minute)
        eventually(lambda: len(archived(engine)) == 5)
    assert keys(engine) == [f"report@2026-05-01T12:0{n}:00Z" for n in range(1, 6)]


def test_a_worker_that_stops_closes_its_connection(engine: Engine, kind: Kind):
    """The service ends with the worker."""
    found = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% recurring'"
        " AND datname = current_database()"
    )

    def connections() -> int:
        with engine.connect() as connection:
            return connection.execute(found).scalar_one()

    with kind.worker(engine, minutely()):
        eventually(lambda: connections() == 1)
    eventually(lambda: connections() == 0)


def test_a_missing_privilege_is_named_when_the_worker_starts(engine: Engine):
    with engine.begin() as connection:
        for statement in (
            "CREATE ROLE ticking LOGIN",
            "GRANT USAGE ON SCHEMA proletarian TO ticking",
            "GRANT ALL ON ALL TABLES IN SCHEMA proletarian TO ticking",
            "REVOKE DELETE ON proletarian.recurring FROM ticking",
        ):
            connection.execute(text(statement))
    other = create_engine(engine.url, connect_args={"options": "-c role=ticking"})
    try:
        with pytest.raises(PrivilegeError, match=r"GRANT DELETE ON proletarian\.recurring TO"):
            QueueWorker(other, minutely()).start()
    finally:
        other.dispose()
        with engine.begin() as connection:
            connection.execute(text("DROP OWNED BY ticking"))
            connection.execute(text("DROP ROLE ticking"))


# Declarations.


def test_a_plain_function_becomes_a_handler(engine: Engine):
    """It can be called, and enqueued by hand."""
    handlers, ran = Handlers(), []

    @handlers.recurring("clean", every=HOUR, payload=7)
    def clean(payload: int) -> None:
        ran.append(payload)

    clean(1)
    with Session(engine) as session, session.begin():
        clean.enqueue(session, 2)
    QueueWorker(engine, handlers).drain()
    assert ran == [1, 2]


def test_a_payload_that_cannot_be_encoded_is_rejected_by_the_worker(engine: Engine):
    handlers = minutely(payload=object())
    with pytest.raises(PayloadError):
        QueueWorker(engine, handlers)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("", {"every": MINUTE}, ValueError, "name must have 1 to 255 characters"),
        ("n" * 201, {"every": MINUTE}, ValueError, "name must have at most 200 characters"),
        (7, {"every": MINUTE}, TypeError, "name must be a string"),
        ("taken", {"every": MINUTE}, HandlerError, "there is a recurring job 'taken' already"),
        ("x", {}, ValueError, "either cron= or every="),
        ("x", {"cron": "0 3 * *"}, ValueError, "4 fields"),
        ("x", {"every": MINUTE, "catch_up": True}, ValueError, "catch_up must be"),
        ("x", {"every": MINUTE, "priority": 10}, ValueError, "priority must be from 0"),
        ("x", {"every": MINUTE, "queue": ""}, ValueError, "queue must have"),
    ],
)
def test_a_declaration_that_is_not_valid_is_rejected(
    name: Any, options: Mapping[str, Any], error: type[Exception], message: str
):
    handlers = minutely("taken")
    with pytest.raises(error, match=message):
        handlers.recurring(name, **options)


class Own(DeclarativeBase):
    pass


class Task(JobMixin, Own):
    __tablename__ = "task"


class ArchivedTask(ArchivedJobMixin, Own):
    __tablename__ = "archived_task"


class RecurringTask(RecurringJobMixin, Own):
    __tablename__ = "recurring_task"

    tenant: Mapped[str | None] = mapped_column(default=None)


class House(JobMixin, Own):
    __tablename__ = "house"
    __mapper_args__: Mapping[str, Any] = {"polymorphic_on": "job_type"}


class Cleaning(House):
    __mapper_args__: Mapping[str, Any] = {"polymorphic_identity": "cleaning"}


def test_a_job_class_cannot_be_recurring():
    """Its data is in columns, not in a payload."""
    handlers = Handlers()
    with pytest.raises(HandlerError, match="Cleaning cannot be the recurring job 'clean'"):
        handlers.recurring("clean", every=MINUTE)(handlers(Cleaning)(lambda job: None))


def test_own_tables(empty_database: URL, clock: ManualClock):
    """A table of recurring jobs belongs to one table of jobs, and may have more columns."""
    engine = create_engine(empty_database)
    Own.metadata.create_all(engine)
    models: dict[str, Any] = {"job_model": Task, "archived_job_model": ArchivedTask}
    with pytest.raises(ValueError, match="define the recurring job 'report', but Task has no"):
        QueueWorker(engine, minutely(), **models)
    handlers = minutely()
    handlers("user")(lambda payload: None)
    models["recurring_job_model"] = RecurringTask
    worker = QueueWorker(engine, handlers, clock=clock, **models)
    worker.drain()
    with Session(engine) as session, session.begin():
        row = manage.schedule(
            session,
            "user",
            "user",
            every=MINUTE,
            clock=clock,
            recurring_job_model=RecurringTask,
            tenant="acme",
        )
        assert (type(row), row.tenant) == (RecurringTask, "acme")
    clock.now = at(12, 1)
    assert worker.drain() == 2
    with Session(engine) as session, session.begin():
        assert manage.unschedule(session, "user", recurring_job_model=RecurringTask)
    engine.dispose()


def test_the_key_of_an_own_table_is_the_name():
    class Mine(DeclarativeBase):
        pass

    with pytest.raises(ModelError, match="Wrong must be name, not"):

        class Wrong(RecurringJobMixin, Mine):
            __tablename__ = "wrong"

            id: Mapped[int] = mapped_column(primary_key=True)


# manage.schedule and manage.unschedule.


def test_a_schedule_is_part_of_the_transaction(engine: Engine):
    with Session(engine) as session:
        manage.schedule(session, "mine", "report", every=MINUTE)
        session.rollback()
        assert schedules(engine) == {}
        manage.schedule(session, "mine", "report", every=MINUTE)
        session.commit()
        assert manage.unschedule(session, "mine")
        session.rollback()
        assert set(schedules(engine)) == {"mine"}
        assert manage.unschedule(session, "mine")
        session.commit()
        assert not manage.unschedule(session, "mine")
    assert schedules(engine) == {}


def test_a_schedule_can_be_changed(engine: Engine, clock: ManualClock):
    """A new timing begins now; the same timing goes on; a pause stays."""
    with Session(engine) as session:
        manage.schedule(session, "mine", "report", every=HOUR, clock=clock)
        session.commit()
        change(engine, "mine", paused=True, next_at=at(20))
        row = manage.schedule(session, "mine", "other", 7, every=HOUR, priority=1, clock=clock)
        assert (row.job_type, row.payload, row.priority, row.next_at) == ("other", "7", 1, at(20))
        row = manage.schedule(
            session, "mine", "other", cron="0 3 * * *", timezone="Europe/Oslo", clock=clock
        )
        session.commit()
        assert (row.interval_seconds, row.cron, row.next_at) == (None, "0 3 * * *", at(1, day=2))
        assert row.paused


def test_a_schedule_of_code_cannot_be_changed_by_users(engine: Engine, clock: ManualClock):
    QueueWorker(engine, minutely(), clock=clock).drain()
    with Session(engine) as session:
        with pytest.raises(ValueError, match=r"defined in code, by @handlers\.recurring"):
            manage.schedule(session, "report", "report", every=HOUR)
        with pytest.raises(ValueError, match="remove 'report' there, or set paused"):
            manage.unschedule(session, "report")


def test_two_users_who_create_the_same_schedule(engine: Engine):
    """The second one waits for the first, and changes its row."""
    from threading import Thread

    other = Event()

    def second() -> None:
        with Session(engine) as session, session.begin():
            other.set()
            manage.schedule(session, "mine", "second", every=MINUTE)

    with Session(engine) as session, session.begin():
        manage.schedule(session, "mine", "first", every=MINUTE)
        thread = Thread(target=second)
        thread.start()
        other.wait()
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        with engine.connect() as connection:

            def waits() -> bool:
                with connection.begin():
                    return bool(connection.scalar(waiting))

            eventually(waits)
    thread.join()
    assert schedules(engine)["mine"].job_type == "second"


@in_a_loop
async def test_the_awaitable_twins(engine: Engine, loop_engine: AsyncEngine):
    async with AsyncSession(loop_engine) as session, session.begin():
        row = await awaitable.schedule(session, "mine", "report", {"n": 1}, cron="0 3 * * *")
        assert row.payload == '{"n":1}'
    assert set(schedules(engine)) == {"mine"}
    async with AsyncSession(loop_engine) as session, session.begin():
        with pytest.raises(TypeError, match=r"await sqlalchemy_proletarian\.asyncio\.schedule\("):
            manage.schedule(session, "mine", "report", every=MINUTE)  # type: ignore[arg-type, call-overload]
        assert await awaitable.unschedule(session, "mine")
        assert not await awaitable.unschedule(session, "mine")
    assert schedules(engine) == {}
