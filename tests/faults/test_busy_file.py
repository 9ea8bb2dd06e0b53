"""A SQLite file that other processes lock for a long time or are killed while writing to."""

from __future__ import annotations

import subprocess
import sys
from time import monotonic

from sqlalchemy import Engine

from .fleet import Fleet, attempts, audit, await_empty, put_for_each
from .sites import Site, on

WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO ledger SELECT job_id, 0, 0 FROM job")
print("writes", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


@on("sqlite")
def test_writers_that_die(site: Site, engine: Engine, workers: Fleet, soak: float) -> None:
    """Jobs wait while another process writes for longer than the timeouts; no attempt is counted.

    The writes of a killed process are rolled back and block nothing.
    """
    ids = put_for_each(workers.kinds, engine, [("effect", 0.0), ("effect", 0.02)] * 50)
    for kind in workers.kinds:
        workers.start(kind, *kind.patiently)
    deadline = monotonic() + max(soak, 8.0)

    def write() -> None:
        if monotonic() > deadline:
            return
        seconds = workers.random.choice([0.0, 0.5, 2.5])
        command = [sys.executable, "-c", WRITER, str(site.url.database), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writes\n"
            try:
                writer.wait(workers.random.uniform(0.0, 2.0))
            except subprocess.TimeoutExpired:
                writer.kill()

    await_empty(engine, 60 + 2 * soak, write)
    assert workers.stop() == [0] * len(workers.kinds)
    audit(engine, ids, workers.effects_by_job())
    assert set(attempts(engine).values()) == {1}
