from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import sleep

import pytest
from sqlalchemy import Engine, func, select, union_all
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, QueueWorker, RecurringJob

from . import recurring_program
from .recurring_program import POLLING, clock_of, recurring, write_time
from .support import eventually, rows

MINUTE = timedelta(minutes=1)
START = datetime(2026, 10, 24, 23, 30, 30, tzinfo=UTC)
"""Half an hour before clocks go back in Oslo."""

TICKS = 500
"""For each of two recurring jobs."""

SKEWS = [("0", "0"), ("0", "300"), ("0", "0"), ("0", "-240")]
"""The wrong clocks of the workers of each process, in seconds."""


@contextmanager
def process(engine: Engine, clock: Path, mode: str, *skews: str) -> Iterator[subprocess.Popen[str]]:
    url = engine.url.render_as_string(hide_password=False)
    program = [sys.executable, "-m", recurring_program.__name__, url, str(clock), mode, *skews]
    with subprocess.Popen(program) as started:
        try:
            yield started
        finally:
            started.kill()


def enqueued(engine: Engine) -> Counter[str]:
    """Return how many jobs each tick has become."""
    both = union_all(select(Job.unique_key), select(ArchivedJob.unique_key)).subquery()
    counted = select(both.c.unique_key, func.count()).group_by(both.c.unique_key)
    with Session(engine) as session:
        return Counter({str(key): number for key, number in session.execute(counted)})


def key(name: str, minute: int) -> str:
    tick = START.replace(second=0) + minute * MINUTE
    return f"{name}@{tick:%Y-%m-%dT%H:%M:%SZ}"


def test_each_of_1000_ticks_becomes_one_job(engine: Engine, tmp_path: Path):
    """8 workers in 4 processes, two with a wrong clock; processes are killed all the time."""
    random, clock, now = Random(7), tmp_path / "clock", START  # noqa: S311
    write_time(clock, now)
    QueueWorker(engine, recurring(), clock=clock_of(clock, 0)).drain()
    running: list[Iterator[subprocess.Popen[str]]] = []

    def start(number: int) -> subprocess.Popen[str]:
        manager = process(engine, clock, "work", *SKEWS[number])
        opened = manager.__enter__()
        running.append(manager)  # type: ignore[arg-type]
        return opened

    def moved() -> bool:
        """Return whether all ticks until now were enqueued."""
        found = rows(engine, RecurringJob)
        return len(found) == 2 and all(row.next_at > now for row in found)

    try:
        processes = [start(number) for number in range(4)]
        eventually(moved)
        kills, end = 0, START + TICKS * MINUTE
        while now < end:
            now = min(end, now + random.randint(1, 20) * MINUTE)
            write_time(clock, now)
            if kills < 8 and (now - START) / (end - START) > kills / 8:
                sleep(random.random() / 20)  # in the middle of what the tick causes
                victim = kills % 4
                processes[victim].kill()
                processes[victim].wait()
                processes[victim] = start(victim)
                kills += 1
            else:
                eventually(moved)
        eventually(moved)
        eventually(lambda: not rows(engine, Job))
    finally:
        for manager in running:
            manager.__exit__(None, None, None)  # type: ignore[attr-defined]
    assert kills == 8
    found = enqueued(engine)
    expected = {key(name, n) for name in ("interval", "cron") for n in range(1, TICKS + 1)}
    assert expected - found.keys() == set()
    assert {tick: number for tick, number in found.items() if number != 1} == {}
    ahead = {key(name, TICKS + n) for name in ("interval", "cron") for n in range(1, 7)}
    assert found.keys() - expected - ahead == set()


@pytest.mark.parametrize("mode", ["die before", "die after"])
def test_a_kill_around_the_commit_neither_loses_nor_doubles_a_tick(
    engine: Engine, tmp_path: Path, mode: str
):
    """The job and the move to the next tick are one transaction."""
    clock = tmp_path / "clock"
    write_time(clock, START)
    QueueWorker(engine, recurring(), clock=clock_of(clock, 0)).drain()
    now = START + MINUTE
    write_time(clock, now)
    with process(engine, clock, mode, "0") as killed:
        assert killed.wait(25) == -9
    survived = {"die before": 0, "die after": 1}[mode]
    assert sum(row.next_at > now for row in rows(engine, RecurringJob)) == survived
    with QueueWorker(engine, recurring(), clock=clock_of(clock, 0), polling_interval=POLLING):
        eventually(lambda: len(rows(engine, ArchivedJob)) == 2)
    assert enqueued(engine) == {key("interval", 1): 1, key("cron", 1): 1}
