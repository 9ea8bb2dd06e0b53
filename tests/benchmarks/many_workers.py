"""How a fleet of worker processes scales: ``python -m tests.benchmarks.many_workers``.

It starts a server of its own, and for each number of worker processes measures

- the throughput of jobs that do nothing, and of jobs that wait 5 ms, on one queue or on one queue
  for each process, with the number of sessions that wait for a lock, sampled meanwhile;
- what the idle fleet costs: transactions per second, and processor time;
- what one job costs that is enqueued while all are idle: transactions, and the time until it is
  archived.

It prints a table in Markdown. The processes are forks of this one, so their imports do not count.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count as count_from
from threading import Event, Thread
from typing import Any

import psutil
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Handlers, Job, QueueWorker, enqueue, enqueue_many
from sqlalchemy_proletarian.models import SCHEMA, Base
from tests.faults.server import Server, own_server

SAMPLE = 0.05
"""Seconds between two samples of the sessions."""
SLEEP = 0.005
"""Seconds that a job of the second kind waits."""
PROBES = 20
"""How many single jobs the idle fleet gets."""
PAYLOAD = "x" * 100


def handlers() -> Handlers:
    """Return the handlers of all workers."""
    registry = Handlers()

    @registry("noop")
    def noop(payload: str) -> None:
        pass

    @registry("wait")
    def wait(payload: str) -> None:
        time.sleep(SLEEP)

    return registry


@dataclass
class Fleet:
    """The worker processes of one measurement."""

    engine: Engine
    processes: list[psutil.Process] = field(default_factory=list)

    def start(self, queues: Sequence[Sequence[str]], options: dict[str, Any]) -> None:
        """Fork one worker for each list of queues."""
        url = self.engine.url
        self.engine.dispose()
        for served in queues:
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    QueueWorker(create_engine(url), handlers(), queues=served, **options).run()
                    code = 0
                finally:
                    os._exit(code)
            self.processes.append(psutil.Process(pid))

    def stop(self) -> None:
        """Stop the workers."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        for process in self.processes:
            os.waitpid(process.pid, 0)

    def cpu(self) -> float:
        """Return the processor time of the workers in seconds."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


def server_cpu(server: Server) -> float:
    """Return the processor time of the server in seconds."""
    pid = int((server.directory / "data" / "postmaster.pid").read_text().split()[0])
    seconds = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children()]:
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:2])
    return seconds


_TRANSACTIONS = text(
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
)
_SESSIONS = text(
    "SELECT count(*), count(*) FILTER (WHERE state = 'active'),"
    " count(*) FILTER (WHERE wait_event_type = 'Lock'),"
    " count(*) FILTER (WHERE wait_event_type = 'LWLock')"
    " FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


own = count_from(1)
"""Numbers the transactions of this process, so that they can be subtracted."""


def transactions(engine: Engine) -> int:
    """Return how many transactions the workers have made."""
    time.sleep(1.2)  # sessions report what they did once a second
    with engine.connect() as connection:
        return int(connection.scalar(_TRANSACTIONS) or 0) - next(own)


@contextmanager
def sampled(engine: Engine) -> Iterator[list[tuple[int, ...]]]:
    """Sample the sessions in the block: all, active, waiting for a lock, for a light lock."""
    samples: list[tuple[int, ...]] = []
    over = Event()

    def sample() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not over.wait(SAMPLE):
                samples.append(tuple(connection.execute(_SESSIONS).one()))
                next(own)

    thread = Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def until(condition: Callable[[], Any], seconds: float, pause: float) -> None:
    """Wait until ``condition`` returns a true value."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit("it took too long")
        time.sleep(pause)


def count(engine: Engine, model: type[Any]) -> int:
    """Return the number of rows of a table."""
    next(own)
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def mean(samples: Sequence[tuple[int, ...]], column: int) -> float:
    """Return the mean of a column of the samples."""
    return sum(sample[column] for sample in samples) / max(len(samples), 1)


def throughput(engine: Engine, kind: str, n: int, queues: Sequence[str]) -> dict[str, float]:
    """Return how fast the fleet runs n jobs that are enqueued at once."""
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {SCHEMA}.job, {SCHEMA}.archived_job"))
    before = transactions(engine)
    with sampled(engine) as samples:
        with Session(engine) as session, session.begin():
            for queue in queues:
                rows = [(kind, PAYLOAD)] * (n // len(queues))
                enqueue_many(session, rows, queue=queue)
        started = time.monotonic()
        samples.clear()
        until(lambda: count(engine, Job) == 0, 120, 0.02)
        seconds = time.monotonic() - started
    return {
        "rate": count(engine, ArchivedJob) / seconds,
        "transactions": (transactions(engine) - before) / seconds,
        "active": mean(samples, 1),
        "lock": mean(samples, 2),
        "lwlock": mean(samples, 3),
    }


def idle(engine: Engine, server: Server, fleet: Fleet, seconds: float) -> dict[str, float]:
    """Return what the idle fleet costs."""
    time.sleep(12)  # workers look a few more times, and idle sessions report after ten seconds
    before, cpu, servers = transactions(engine), fleet.cpu(), server_cpu(server)
    started = time.monotonic()
    time.sleep(seconds)
    after, took = transactions(engine), time.monotonic() - started
    return {
        "queries": (after - before) / took,
        "cpu": 100 * (fleet.cpu() - cpu) / took,
        "server": 100 * (server_cpu(server) - servers) / took,
    }


def single(engine: Engine, queues: Sequence[str]) -> dict[str, float]:
    """Return what one job costs that is enqueued while all workers are idle."""
    before, taken = transactions(engine), []
    for n in range(PROBES):
        done = count(engine, ArchivedJob)
        with Session(engine) as session, session.begin():
            enqueue(session, "noop", PAYLOAD, queue=queues[n % len(queues)])
        next(own)
        started = time.monotonic()
        until(lambda done=done: count(engine, ArchivedJob) > done, 30, 0.001)
        taken.append(time.monotonic() - started)
        time.sleep(2.5)
    return {
        "each": (transactions(engine) - before) / PROBES,
        "latency": 1000 * sorted(taken)[PROBES // 2],
    }


def show(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def is_complete(samples: Sequence[tuple[int, ...]], connections: int) -> bool:
    """Return whether the last sample has so many sessions."""
    return bool(samples) and samples[-1][0] >= connections


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", default="1,2,5,10,25,50")
    parser.add_argument("--queues", choices=["one", "each"], default="one")
    parser.add_argument("--jobs", type=int, default=40_000, help="jobs that do nothing")
    parser.add_argument("--waiting", type=int, default=400, help="waiting jobs for each process")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds")
    parser.add_argument("--lease", action="store_true", help="lease mode instead of transactions")
    parser.add_argument("--probes", type=int, default=PROBES)
    given = parser.parse_args()
    globals()["PROBES"] = given.probes
    options = {"lease": timedelta(minutes=1)} if given.lease else {}
    show(
        "| processes | connections | no-op jobs/s | transactions/s | active | Lock | LWLock "
        "| 5 ms jobs/s | active | Lock | LWLock | idle transactions/s | idle CPU, workers "
        "| idle CPU, server | transactions per single job | commit → archived, median |\n|"
        + "---:|"
        * 16
    )
    with own_server(max_connections="400", shared_buffers="'256MB'") as server:
        engine = create_engine(server.url())
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
            Base.metadata.create_all(connection)
        for n in map(int, given.processes.split(",")):
            names = ["default"] if given.queues == "one" else [f"queue-{i}" for i in range(n)]
            fleet = Fleet(engine)
            served = [names] * n if given.queues == "one" else [[name] for name in names]
            fleet.start(served, options)
            try:
                with sampled(engine) as samples:
                    until(partial(is_complete, samples, 2 * n), 60, 0.1)
                    time.sleep(1)
                plain = throughput(engine, "noop", given.jobs, names)
                waiting = throughput(engine, "wait", given.waiting * n, names)
                with sampled(engine) as samples:
                    time.sleep(2 * SAMPLE + 0.1)
                cost = idle(engine, server, fleet, given.idle)
                one = single(engine, names)
                show(
                    f"| {n} | {samples[-1][0]} | {plain['rate']:,.0f} "
                    f"| {plain['transactions']:,.0f} | {plain['active']:.1f} | {plain['lock']:.1f} "
                    f"| {plain['lwlock']:.1f} | {waiting['rate']:,.0f} | {waiting['active']:.1f} "
                    f"| {waiting['lock']:.1f} | {waiting['lwlock']:.1f} | {cost['queries']:.1f} "
                    f"| {cost['cpu']:.1f} % | {cost['server']:.1f} % | {one['each']:.1f} "
                    f"| {one['latency']:.1f} ms |"
                )
            finally:
                fleet.stop()
        engine.dispose()


if __name__ == "__main__":
    main()
