"""Hosts that vanish without sending a FIN or an RST."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Handlers, QueueWorker, enqueue, utcnow

from .fleet import LEASE, Fleet, Kind, audit, await_empty, put, until
from .netns import Host, hosts, why_not
from .program import ACCOUNT
from .proxy import proxy
from .server import Server
from .sites import Site, on_servers

NOTICED = 20
"""Seconds within which either side notices that the other has vanished."""

SENT = 0.5
"""Seconds within which a handler has sent its next query."""

LATE: list[tuple[str, Any]] = [("late", 4.0)]
"""A job that computes for some seconds and then writes."""

SERVER_SETTINGS = ("tcp_keepalives_idle", "tcp_user_timeout", "client_connection_check_interval")
CLIENT_OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


@pytest.fixture
def host_of(site: Site) -> Iterator[dict[Kind, Host]]:
    """Yield a host for each kind of worker, so that all of them are cut off at once."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with hosts(len(site.kinds)) as created:
        yield dict(zip(site.kinds, created, strict=True))


@pytest.fixture
def accounts(site: Site, engine: Engine) -> Iterator[Engine]:
    """Yield the test's engine; end all worker connections afterwards.

    The next test does not have to wait until the server notices that a host has vanished.
    """
    yield engine
    with engine.begin() as connection:
        site.end_all(connection)


def start(workers: Fleet, kind: Kind, *arguments: str, **where: Any) -> None:
    """Start a worker with its own queue that runs all its jobs at the same time."""
    workers.start(
        kind, f"--queue={kind.queue}", "--places=4", "--batch-size=1", *arguments, **where
    )


def start_on(host_of: dict[Kind, Host], site: Site, workers: Fleet, *arguments: str) -> None:
    """Start a worker of each kind, each on its own host."""
    for kind, host in host_of.items():
        start(workers, kind, *arguments, url=site.url_from(host), within=host.within())


def rescue(workers: Fleet) -> None:
    """Start workers for all queues, whose bookings do not linger."""
    for kind in (kind for kind in workers.kinds if kind.waits == "threads"):
        queues = [f"--queue={of.queue}" for of in workers.kinds if of.lease == kind.lease]
        workers.start(kind, *queues, "--places=8")


def book(kinds: Iterable[Kind], engine: Engine, *cases: str) -> dict[UUID, tuple[Kind, str]]:
    """Enqueue bookings for each kind, each with its own account; return kind and case by job id."""
    jobs = {}
    with Session(engine) as session, session.begin():
        for kind in kinds:
            for case in cases:
                account = f"{kind.queue}: {case}"
                session.execute(insert(ACCOUNT), {"name": account, "bookings": 0})
                payload = {"account": account, "while": case}
                job = enqueue(session, "booking", payload, queue=kind.queue)
                jobs[job.job_id] = kind, case
    return jobs


def await_busy(workers: Fleet, count: int) -> None:
    """Wait until ``count`` handlers have started and sent their queries."""
    until(lambda: len(workers.begun()) == count, 30)
    sleep(SENT)


def seconds_from(since: datetime, engine: Engine) -> dict[UUID, float]:
    """Return how many seconds after ``since`` each job finished."""
    with Session(engine) as session:
        finished = session.execute(select(ArchivedJob.job_id, ArchivedJob.finished_at)).all()
    return {job_id: (at - since).total_seconds() for job_id, at in finished}


def audit_bookings(engine: Engine, jobs: dict[UUID, Any], workers: Fleet) -> None:
    """Assert that each booking took effect once."""
    audit(engine, set(jobs), workers.effects_by_job())
    with engine.connect() as connection:
        assert set(connection.scalars(select(ACCOUNT.c.bookings))) == {1}


@on_servers
def test_jobs_of_a_vanished_host(
    site: Site,
    accounts: Engine,
    workers: Fleet,
    host_of: dict[Kind, Host],
    recovered: Callable[[str, Kind, float], None],
) -> None:
    """Jobs of a vanished host run elsewhere within 20 seconds, whatever the host had locked."""
    start_on(host_of, site, workers, "--linger=600")
    jobs = book(site.kinds, accounts, "computing", "the job's row is locked", "a query runs")
    await_busy(workers, len(jobs))
    jobs |= book(site.kinds, accounts, "an answer comes")
    await_busy(workers, len(jobs))
    for host in host_of.values():
        host.cut()
    cut_at = utcnow()
    rescue(workers)
    await_empty(accounts, 60)
    taken = seconds_from(cut_at, accounts)
    for job_id, (kind, case) in jobs.items():
        recovered(f"host vanished: {case}", kind, taken[job_id])
    assert max(taken.values()) < NOTICED
    audit_bookings(accounts, jobs, workers)


@on_servers
def test_a_server_that_vanishes_and_comes_back(
    site: Site,
    accounts: Engine,
    workers: Fleet,
    host_of: dict[Kind, Host],
    recovered: Callable[[str, Kind, float], None],
) -> None:
    """Workers notice within 20 seconds and continue when the server is back; nothing runs twice."""
    start_on(host_of, site, workers, "--linger=16", "--polling=60")
    jobs = book(site.kinds, accounts, "computing", "a query runs")
    await_busy(workers, len(jobs))
    for host in host_of.values():
        host.cut()
    cut_at = monotonic()
    jobs |= book(site.kinds, accounts, "enqueued while cut off")
    unaware = dict(enumerate(site.kinds))

    def all_noticed() -> bool:
        for number in [n for n in unaware if site.noticed in workers.said(n)]:
            recovered("server vanished: noticed", unaware.pop(number), monotonic() - cut_at)
        return not unaware

    until(all_noticed, NOTICED)
    # Handlers end meanwhile, and their workers cannot settle the jobs.
    sleep(max(0.0, cut_at + 18 - monotonic()))
    gave_up = {job_id for job_id in jobs if f"gave up {job_id}" in workers.said()}
    assert gave_up == {job_id for job_id, (_, case) in jobs.items() if case == "a query runs"}
    for host in host_of.values():
        host.heal()
    healed_at = utcnow()
    await_empty(accounts, 60)
    taken = seconds_from(healed_at, accounts)
    for kind in site.kinds:
        last = max(taken[job_id] for job_id, (of, _) in jobs.items() if of == kind)
        recovered("server is back", kind, last)
        assert last < NOTICED
    assert workers.stop() == [0] * len(site.kinds)
    audit_bookings(accounts, jobs, workers)


@on_servers
def test_stopped_while_the_server_is_away(
    site: Site, accounts: Engine, workers: Fleet, host_of: dict[Kind, Host], soak: float
) -> None:
    """A worker stops in time after its server vanished, whether or not it has noticed."""
    start_on(host_of, site, workers, "--linger=600", "--timeout=2")
    jobs = book(site.kinds, accounts, "computing", "a query runs")
    await_busy(workers, len(jobs))
    for host in host_of.values():
        host.cut()
    sleep(16 if soak else 1)
    for worker in workers.alive():
        worker.terminate()
    until(lambda: all("worker-stopped" in workers.said(n) for n in range(len(site.kinds))), 2 + 5)


@on_servers
def test_a_line_that_swallows(
    site: Site, engine: Engine, workers: Fleet, recovered: Callable[[str, Kind, float], None]
) -> None:
    """Jobs run elsewhere when their leases expire if a proxy accepts packets and drops them.

    Keepalives do not detect this: rows locked by a transaction stay locked as long as the
    connection exists, except on databases where workers end the transactions of missing workers.
    """
    kinds = [kind for kind in workers.kinds if kind.lease is not None or site.miss]
    with proxy(site.proxied_url()) as between:
        for kind in kinds:
            start(workers, kind, url=between.url)
        jobs = {job_id: kind for kind in kinds for job_id in put(engine, LATE, queue=kind.queue)}
        until(lambda: len(workers.begun()) == len(jobs), 30)
        between.swallow()
        swallowed_at = utcnow()
        rescue(workers)
        await_empty(engine, 60)
    taken = seconds_from(swallowed_at, engine)
    for job_id, kind in jobs.items():
        recovered("a connection that swallows packets", kind, taken[job_id] - LATE[0][1])
    assert max(taken.values()) < NOTICED
    audit(engine, set(jobs), workers.effects_by_job())


@on_servers
def test_a_query_of_a_killed_worker(
    site: Site, accounts: Engine, workers: Fleet, recovered: Callable[[str, Kind, float], None]
) -> None:
    """The server ends the query of a killed worker within seconds; the job runs elsewhere."""
    for kind in site.kinds:
        start(workers, kind, "--linger=600")
    jobs = book(site.kinds, accounts, "a query runs")
    await_busy(workers, len(jobs))
    for worker in workers.alive():
        workers.kill(worker)
    killed_at = utcnow()
    rescue(workers)
    await_empty(accounts, 30)
    taken = seconds_from(killed_at, accounts)
    for job_id, (kind, _) in jobs.items():
        recovered("worker killed: a query runs", kind, taken[job_id])
    assert max(taken.values()) < 10
    audit_bookings(accounts, jobs, workers)


def test_nothing_stays_on_a_pooled_connection(server: Server, engine: Engine) -> None:
    """The timeouts set on a handler's connection are reset when it returns to the pool."""
    pool = create_engine(server.url(host="127.0.0.1"), pool_size=1, max_overflow=0)
    handlers = Handlers()
    seen = []

    @handlers("inspect")
    def inspect(payload: None, session: Session) -> None:
        with session.begin_nested():
            seen.append(settings(session.connection()))

    with pool.connect() as connection:
        driver, before = connection.connection.dbapi_connection, settings(connection)
    put(engine, [("inspect", None)])
    QueueWorker(pool, handlers, lease=timedelta(seconds=LEASE)).drain()
    with pool.connect() as connection:
        assert connection.connection.dbapi_connection is driver
        assert settings(connection) == before
    pool.dispose()
    assert len(seen) == 1
    assert not seen[0].items() & before.items()


def settings(connection: Connection) -> dict[str, Any]:
    """Return the settings that decide how soon either end notices that the other is gone."""
    driver: Any = connection.connection.dbapi_connection
    with socket.socket(fileno=os.dup(driver.fileno())) as client:
        options = {
            option: client.getsockopt(socket.IPPROTO_TCP, getattr(socket, option))
            for option in CLIENT_OPTIONS
        }
    return options | {
        setting: connection.scalar(text(f"SHOW {setting}")) for setting in SERVER_SETTINGS
    }
