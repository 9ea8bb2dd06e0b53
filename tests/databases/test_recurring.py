from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Column, Engine, MetaData, String, Table, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, RecurringJob, manage, migrate
from tests.integration.support import (
    MINUTE,
    SECOND,
    Log,
    ManualClock,
    archived,
    eventually,
    queued,
    rows,
)

from .places import Place, plugins_of

SOON = SECOND / 50


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still at 12:00:30."""
    clock = ManualClock()
    clock.now = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
    return clock


def reports(**options: Any) -> Handlers:
    handlers = Handlers()

    @handlers.recurring("cron", cron="* * * * *", timezone="Europe/Oslo", payload=1, **options)
    @handlers.recurring("interval", every=MINUTE, payload=2, **options)
    @handlers("report")
    def report(payload: int) -> None: ...

    return handlers


def test_recurring_jobs_run(place: Place, engine: Engine, clock: ManualClock):
    """The rows of code and of users; a pause, a change and a removal."""
    options = {"clock": clock}
    place.run_all(engine, reports(), **options)
    with Session(engine) as session, session.begin():
        manage.schedule(session, "user", "report", 3, every=MINUTE, clock=clock)
    with Session(engine) as session, session.begin():
        row = manage.schedule(session, "user", "report", 4, every=MINUTE, clock=clock)
        assert row.payload == "4"
        session.get_one(RecurringJob, "interval").paused = True
    clock.advance(MINUTE)
    assert place.run_all(engine, reports(), **options) == 2
    assert sorted((job.payload, job.unique_key) for job in archived(engine)) == [
        ("1", "cron@2026-05-01T12:01:00Z"),
        ("4", "user@2026-05-01T12:01:00Z"),
    ]
    place.run_all(engine, reports(queue="other"), **options)
    found = {row.name: row for row in rows(engine, RecurringJob)}
    assert {name: row.queue for name, row in found.items()} == {
        "cron": "other",
        "interval": "other",
        "user": "default",
    }
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert {row.next_at for row in found.values()} == {noon + 2 * MINUTE}
    assert found["interval"].paused
    with Session(engine) as session, session.begin():
        assert manage.unschedule(session, "user")
        assert not manage.unschedule(session, "user")
    assert len(rows(engine, RecurringJob)) == 2


def test_a_removed_definition_is_removed(place: Place, engine: Engine, clock: ManualClock):
    """Two minutes after the last worker that had it."""
    place.run_all(engine, reports(), clock=clock)
    handlers = Handlers()
    handlers.recurring("other", every=timedelta(days=1))(lambda payload: None)
    log = Log()
    with place.worker(engine, handlers, clock=clock, log=log, polling_interval=SOON):
        for _ in range(4):
            eventually(lambda: any(row.name == "other" for row in rows(engine, RecurringJob)))
            clock.advance(MINUTE)
            eventually(
                lambda: next(
                    row.confirmed_at == clock.now
                    for row in rows(engine, RecurringJob)
                    if row.name == "other"
                )
            )
        eventually(lambda: len(rows(engine, RecurringJob)) == 1)
    changes = {data["recurring"]: data["change"] for data in log.data("recurring-changed")}
    assert changes == {"other": "added", "cron": "removed", "interval": "removed"}


def test_each_tick_becomes_one_job(place: Place, engine: Engine, clock: ManualClock):
    """Several workers look for ticks at the same time."""
    place.run_all(engine, reports(catch_up="all"), clock=clock)
    options: dict[str, Any] = {"clock": clock, "polling_interval": SOON}
    workers = [place.worker(engine, reports(catch_up="all"), **options) for _ in range(4)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(10):
            clock.advance(3 * MINUTE)
            eventually(lambda: all(row.next_at > clock.now for row in rows(engine, RecurringJob)))
        eventually(lambda: len(archived(engine)) >= 60 and not queued(engine))
    finally:
        for worker in workers:
            worker.stop()
    counted = Counter(job.unique_key for job in archived(engine))
    assert (len(counted), set(counted.values())) == (60, {1})


def test_the_tables_match_the_models(place: Place, engine: Engine):
    """An insertion without the columns that have a default, as an operator writes it."""
    plugin = {"plugin": plugins_of(place)} if plugins_of(place) else {}
    assert migrate.check(engine.url.update_query_dict(plugin)).differences == ()
    with engine.begin() as connection:
        values = {"name": "by hand", "cron": "0 3 * * *", "job_type": "report", "payload": "1"}
        columns = [Column(name, String) for name in values]
        there = Table("recurring", MetaData(), *columns, schema="proletarian")
        connection.execute(there.insert().values(values))
        row = connection.execute(select(RecurringJob.__table__)).one()
    assert (row.paused, row.queue, row.catch_up, row.time_zone) == (
        False,
        "default",
        "last",
        "UTC",
    )
    assert rows(engine, Job) == []
