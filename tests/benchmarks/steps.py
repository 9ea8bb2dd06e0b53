"""Measures what each step of a single job costs, in one process and without changing the engine.

A step is timed where its statement is executed: by events of SQLAlchemy, which include the time
that SQLAlchemy takes, or for the floor by psycopg. A COMMIT has no event after it, so the
connections are of a subclass of psycopg's. The rest, which is between the steps, is the worker's
own code, and for jobs that insert a row also the unit of work of their Session.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker

from .application import Result
from .contender import Contender, Kind
from .marks import ENVIRONMENT, noop
from .measures import Bench, Values, fill

STEPS = "claim", "marker", "handler", "settle", "commit"
WARM_UP = 50


def step_of(statement: str) -> str | None:
    """Return the step that a statement belongs to; None if it belongs to none."""
    if "archived_job" in statement:
        return "settle"
    if statement.startswith(("INSERT INTO proletarian.running", "DELETE FROM proletarian.running")):
        return "marker"
    if "SKIP LOCKED" in statement or statement.startswith("UPDATE proletarian.job"):
        return "claim"
    if "bench_result" in statement or "SAVEPOINT" in statement or "set_config" in statement:
        return "handler"
    return None


class Clock:
    """The seconds of each step of ``n`` jobs, which begin and end with the start of a claim."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._seconds: Counter[str] = Counter()
        self._claims = 0
        self._start = self._end = 0.0

    def add(self, step: str | None, start: float, statement: str = "") -> None:
        """Add the time since ``start`` to a step."""
        now = time.perf_counter()
        if step == "claim" and not statement.startswith("UPDATE"):
            self._claims += 1
            if self._claims == WARM_UP + 1:
                self._start = start
            if self._claims == WARM_UP + self._n + 1:
                self._end = start
        if step and self._start and not self._end:
            self._seconds[step] += now - start  # type: ignore[assignment]

    def values(self) -> Values:
        """Return the microseconds of each step of one job, of the rest, and of all."""
        values = {step: 1e6 * self._seconds[step] / self._n for step in STEPS}
        total = 1e6 * (self._end - self._start) / self._n
        return {**values, "rest": total - sum(values.values()), "total": total}


class TimedConnection(psycopg.Connection[Any]):
    """A connection of psycopg that times its commits, and what is executed without SQLAlchemy."""

    clock: Clock

    def commit(self) -> None:
        """Commit."""
        start = time.perf_counter()
        super().commit()
        if not self.autocommit:
            self.clock.add("commit", start)

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> psycopg.Cursor[Any]:
        """Execute a statement."""
        start = time.perf_counter()
        cursor = super().execute(query, *args, **kwargs)
        statement = str(query).strip()
        self.clock.add(step_of(statement), start, statement)
        return cursor


def connect(clock: Clock, *args: Any, **kwargs: Any) -> TimedConnection:
    """Return a connection that adds its times to ``clock``."""
    timed = type("Timed", (TimedConnection,), {"clock": clock})
    connection: TimedConnection = timed.connect(*args, **kwargs)
    return connection


def timed_engine(dsn: str, clock: Clock) -> Engine:
    """Return an engine that adds the times of its statements and commits to ``clock``."""
    engine = create_engine(make_url(dsn).set(drivername="postgresql+psycopg"))
    local = threading.local()

    @event.listens_for(engine, "do_connect")
    def _(dialect: Any, record: Any, args: Any, kwargs: Any) -> TimedConnection:
        return connect(clock, *args, **kwargs)

    @event.listens_for(engine, "before_execute")
    def _(*args: Any) -> None:
        local.start = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def _(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
        clock.add(step_of(statement), local.start, statement)

    return engine


def run_worker(dsn: str, n: int, lease: float | None) -> Values:
    """Run jobs with a QueueWorker, one after the other, and return the times of one job."""
    clock = Clock(n)
    handlers = Handlers()

    @handlers("noop")
    def _(payload: dict[str, int]) -> None:
        start = time.perf_counter()
        noop(payload["i"])
        clock.add("handler", start)

    @handlers("write")
    def _(payload: dict[str, int], session: Session) -> None:
        start = time.perf_counter()
        session.add(Result(job=payload["i"]))
        noop(payload["i"])
        clock.add("handler", start)

    engine = timed_engine(dsn, clock)
    leased = None if lease is None else timedelta(seconds=lease)
    QueueWorker(engine, handlers, batch_size=1, lease=leased).drain()
    engine.dispose()
    return clock.values()


def run_floor(contender: Any, n: int) -> Values:
    """Run jobs with raw psycopg, one after the other, and return the times of one job."""
    clock = Clock(n)
    with connect(clock, contender.dsn, prepare_threshold=1) as connection:
        while contender.run_batch(connection, 1):
            pass
    return clock.values()


def steps(bench: Bench, contender: Contender, *, kind: Kind) -> Values:
    """Measure the steps of jobs, each of which has its own transaction."""
    n = bench.scale.steps
    fill(contender, kind, n + WARM_UP)
    bench.server.checkpoint()
    os.environ[ENVIRONMENT] = str(bench.marks)
    return contender.steps(n)
