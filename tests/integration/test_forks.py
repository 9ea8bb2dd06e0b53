"""Workers in processes that are forked after the engine was used."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from sqlalchemy import URL, Engine

from .support import archived, notes, put

PROGRAM = textwrap.dedent(
    """
    import os, sys, time
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    from sqlalchemy_proletarian import Handlers, QueueWorker, enqueue

    lease, when = sys.argv[1:]
    engine = create_engine(os.environ["URL"])
    handlers = Handlers()
    NOTE = text("INSERT INTO note (text, transaction) VALUES (:text, 0)")
    LEFT = text("SELECT count(*) FROM proletarian.job")

    @handlers("job")
    def job(payload, session: Session):
        session.execute(NOTE, {"text": str(payload)})

    def worker():
        options = {"lease": timedelta(seconds=10)} if lease == "lease" else {}
        return QueueWorker(engine, handlers, **options)

    def work(parent_worker):
        if parent_worker is None:
            parent_worker = worker()
        elif when == "running":
            try:
                parent_worker.stop()
            except RuntimeError as error:
                print(error, flush=True)
                return
        with parent_worker, engine.connect() as connection:
            while connection.scalar(LEFT):
                connection.rollback()
                time.sleep(0.05)

    with Session(engine) as session, session.begin():  # leaves a connection in the pool
        enqueue(session, "job", 100)
    parent_worker = None if when == "after" else worker()
    if when == "running":
        parent_worker.start()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                work(parent_worker)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    with Session(engine) as session, session.begin():
        enqueue(session, "job", 101)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    with engine.connect() as connection:
        connection.scalar(LEFT)
    if when == "running":
        parent_worker.stop()
    print(codes)
    """
)


def run(url: URL, *arguments: str) -> str:
    environment = os.environ | {"URL": url.render_as_string(hide_password=False)}
    program = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    return program.stdout


@pytest.mark.parametrize("hold", ["transaction", "lease"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_forked_workers_run_each_job_once(shop: Engine, url: URL, hold: str, when: str) -> None:
    """The parent's connections stay usable, and the worker may be made before or after the fork."""
    for n in range(40):
        put(shop, "job", n)
    shop.dispose()
    assert run(url, hold, when).splitlines()[-1] == "[0, 0]"
    assert sorted(map(int, notes(shop))) == [*range(40), 100, 101]
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}


def test_a_worker_started_before_the_fork_is_rejected_in_the_child(shop: Engine, url: URL) -> None:
    """The error in the child says that the worker belongs to the parent."""
    output = run(url, "transaction", "running")
    assert output.count("is a fork of it") == 2
    assert "Start a worker in each process, after the fork" in output
