from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from time import sleep

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, enqueue
from tests.forked import Forked, forked

from . import limits_program
from .limits_program import LEASE, RATE
from .support import eventually, rows

MODES = "transaction", "lease"

WAIT = 120
"""Seconds after which all jobs have run, also on a busy machine."""

wait_until = partial(eventually, seconds=WAIT)


@contextmanager
def process(engine: Engine, mode: str, directory: Path, limit: int = 3) -> Iterator[Forked]:
    url = engine.url.render_as_string(hide_password=False)
    with forked(limits_program.main, url, mode, str(directory), str(limit)) as started:
        yield started


def put_all(engine: Engine, jobs: int) -> None:
    with Session(engine) as session:
        for n in range(jobs):
            enqueue(session, "sync", n)
            enqueue(session, "customer", {"customer": n % 5})
            if n < 30:
                enqueue(session, "rated", n)
        session.commit()


def exceeded(directory: Path) -> list[str]:
    file = directory / "exceeded"
    return file.read_text().splitlines() if file.exists() else []


def most_in_a_second(directory: Path) -> int:
    """Return the greatest number of starts in any second."""
    starts = sorted(map(int, (directory / "starts").read_text().split()))
    return max(sum(first <= at < first + 10**9 for at in starts) for first in starts)


@pytest.mark.parametrize("modes", [MODES[:1], MODES[1:], MODES], ids="+".join)
def test_kills_do_not_exceed_a_limit(engine: Engine, tmp_path: Path, modes: Sequence[str]):
    """4 processes with 4 threads; one is killed again and again. Both modes respect each other."""
    random, jobs = Random(3), 150  # noqa: S311
    put_all(engine, jobs)
    with ExitStack() as stack:

        def start(number: int) -> tuple[Forked, ExitStack]:
            own = stack.enter_context(ExitStack())
            mode = modes[number % len(modes)]
            return own.enter_context(process(engine, mode, tmp_path)), own

        running = [start(number) for number in range(4)]
        for kill in range(8):
            victim = kill % 4
            # Starting takes seconds on a busy machine.
            wait_until((tmp_path / f"started-{running[victim][0].pid}").exists)
            sleep(0.2 + random.random() / 2)
            running[victim][0].kill()
            running[victim][1].close()
            running[victim] = start(victim)
        wait_until(lambda: not rows(engine, Job))
    assert exceeded(tmp_path) == []
    assert most_in_a_second(tmp_path) <= RATE
    ended = Counter((row.job_type, row.status) for row in rows(engine, ArchivedJob))
    assert ended == {
        ("sync", "success"): jobs,
        ("customer", "success"): jobs,
        ("rated", "success"): 30,
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_worker_gives_its_place_back(engine: Engine, tmp_path: Path, mode: str):
    """At once in transaction mode, after the lease in lease mode; the job itself runs again."""
    with Session(engine) as session:
        enqueue(session, "slow", 1)
        session.commit()
    with process(engine, mode, tmp_path) as first:
        wait_until((tmp_path / "slow-began-1").exists)
        first.kill()
    (tmp_path / "slow-go-1").touch()
    with process(engine, mode, tmp_path):
        wait_until(lambda: rows(engine, ArchivedJob))
    assert [job.status for job in rows(engine, ArchivedJob)] == ["success"]


def test_a_frozen_worker_in_transaction_mode_keeps_its_place(engine: Engine, tmp_path: Path):
    with Session(engine) as session:
        enqueue(session, "slow", 1)
        session.commit()
    with process(engine, "transaction", tmp_path) as frozen:
        wait_until((tmp_path / "slow-began-1").exists)
        frozen.send_signal(signal.SIGSTOP)
        with Session(engine) as session:
            enqueue(session, "slow", 2)
            session.commit()
        with process(engine, "transaction", tmp_path) as other:
            wait_until((tmp_path / f"started-{other.pid}").exists)
            sleep(2)
            assert not (tmp_path / "slow-began-2").exists()
            (tmp_path / "slow-go-1").touch()
            frozen.send_signal(signal.SIGCONT)
            wait_until((tmp_path / "slow-began-2").exists)
            (tmp_path / "slow-go-2").touch()
            wait_until(lambda: len(rows(engine, ArchivedJob)) == 2)
    assert exceeded(tmp_path) == []


def test_a_frozen_worker_loses_its_place_with_its_lease_for_good(engine: Engine, tmp_path: Path):
    """The next job takes its place. When the worker goes on, it cannot extend its lease."""
    with Session(engine) as session:
        enqueue(session, "slow", 1, queue="first")
        session.commit()
    url = engine.url.render_as_string(hide_password=False)
    with _of_queue(tmp_path, url, "first") as frozen:
        wait_until((tmp_path / "slow-began-1").exists)
        lease_id = rows(engine, Job)[0].lease_id
        frozen.send_signal(signal.SIGSTOP)
        with Session(engine) as session:
            enqueue(session, "slow", 2)
            session.commit()
        sleep(LEASE.total_seconds())
        with process(engine, "lease", tmp_path):
            wait_until((tmp_path / "slow-began-2").exists)
            frozen.send_signal(signal.SIGCONT)
            sleep(1)
            (job,) = (row for row in rows(engine, Job) if row.queue == "first")
            assert job.lease_id not in (None, lease_id)
            (tmp_path / "slow-go-1").touch()
            (tmp_path / "slow-go-2").touch()
            wait_until(lambda: not rows(engine, Job))
    assert [job.status for job in rows(engine, ArchivedJob)] == ["success"] * 2


@contextmanager
def _of_queue(directory: Path, url: str, queue: str) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", _ONE_QUEUE, url, str(directory), queue]
    with subprocess.Popen(program) as started:
        try:
            yield started
        finally:
            started.send_signal(signal.SIGCONT)
            started.kill()


_ONE_QUEUE = f"""
import sys
from pathlib import Path
from sqlalchemy import create_engine
from sqlalchemy_proletarian import QueueWorker
from {limits_program.__name__} import LEASE, limited

url, directory, queue = sys.argv[1:]
handlers = limited(Path(directory), 3)
QueueWorker(create_engine(url), handlers, queues=queue, lease=LEASE, max_deaths=1000).run()
"""


@pytest.mark.parametrize("mode", MODES)
def test_releases_with_different_limits_share_the_places(engine: Engine, tmp_path: Path, mode: str):
    """While a deploy lowers a limit from 3 to 1, at most 3 jobs run at a time."""
    put_all(engine, 60)
    # The locks of both are in one directory, and there are as many as the higher limit.
    with process(engine, mode, tmp_path, 3), _with_limit_one(engine, mode, tmp_path):
        wait_until(lambda: not rows(engine, Job))
    assert exceeded(tmp_path) == []


@contextmanager
def _with_limit_one(engine: Engine, mode: str, directory: Path) -> Iterator[None]:
    url = engine.url.render_as_string(hide_password=False)
    with subprocess.Popen([sys.executable, "-c", _LIMIT_ONE, url, mode, str(directory)]) as started:
        try:
            yield
        finally:
            started.kill()


_LIMIT_ONE = f"""
import sys
from dataclasses import replace
from pathlib import Path
from sqlalchemy import create_engine
from sqlalchemy_proletarian import QueueWorker
from {limits_program.__name__} import LEASE, limited

url, mode, directory = sys.argv[1:]
handlers = limited(Path(directory), 3)
handler = handlers.find("sync")
handler.limit = replace(handler.limit, concurrency=1)
options = {{"lease": LEASE}} if mode == "lease" else {{}}
QueueWorker(create_engine(url), handlers, threads=4, **options).run()
"""
