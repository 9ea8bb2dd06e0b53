"""The command line on every database."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, manage
from tests.acceptance.cli_runs import cli, fails, printed_json, succeeds

from .places import Place

JOBS = """
from sqlalchemy_proletarian import Handlers
handlers = Handlers()

@handlers("mail")
def mail(payload):
    if payload == "nobody":
        raise ValueError("no such address: é")
"""


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


@pytest.mark.parametrize("kind", [[], ["--asyncio"]], ids=["threads", "asyncio"])
def test_the_life_of_jobs(producer: Place, engine: Engine, tmp_path: Path, kind: list[str]) -> None:
    """Jobs are enqueued, shown, paused, run by a worker, retried and pruned."""
    (tmp_path / "life_jobs.py").write_text(JOBS)
    url = url_of(engine)
    if kind and producer.driver == "postgresql+psycopg2":
        pytest.skip("in an event loop it is psycopg, as in another place")
    fine, failing = (
        succeeds("enqueue", "mail", f'"{to}"', "--queue", "post", url=url).strip()
        for to in ("Ada é", "nobody")
    )
    later = printed_json("enqueue", "mail", "--in", "2h", "-q", "post", url=url)["job_id"]
    kept = succeeds("enqueue", "mail", "-q", "post", "--unique-key", "k", "--in", "1d", url=url)
    assert cli("enqueue", "mail", "-q", "post", "--unique-key", "k", url=url).returncode == 4
    assert {job["job_id"] for job in printed_json("jobs", "list", url=url)["jobs"]} == {
        *(fine, failing, later, kept.strip())
    }
    (queue,) = printed_json("status", url=url)["queues"]
    assert (queue["queue"], queue["due"], queue["scheduled"]) == ("post", 2, 2)
    assert "post" in succeeds("status", url=url)

    worker: list[Any] = ["worker", "life_jobs:handlers", "--queues", "post", "--drain", *kind]
    worker += ["--lease", "30s"] if producer.server == "sqlite" else []
    assert "is paused" in succeeds("queues", "pause", "post", "--by", "Ada", url=url)
    paused = cli(*worker, url=url, cwd=tmp_path)
    assert (paused.returncode, "drained: 0 runs" in paused.stderr) == (0, True), paused.stderr
    assert "warning: the queue 'post' is paused" in paused.stderr
    assert "paused" in succeeds("queues", "list", url=url)
    succeeds("queues", "resume", "post", url=url)
    done = cli(*worker, url=url, cwd=tmp_path)
    assert (done.returncode, "drained: 2 runs" in done.stderr) == (0, True), done.stderr

    failed = printed_json("jobs", "show", failing, url=url)
    assert (failed["status"], json.loads(failed["payload"])) == ("failure", "nobody")
    assert "ValueError: no such address: é" in failed["error"]
    (listed,) = printed_json("jobs", "list", "--status", "failure", url=url)["jobs"]
    assert (listed["job_id"], listed["error"]) == (failing, "ValueError: no such address: é")
    new = succeeds("jobs", "retry", failing, url=url).rpartition(" ")[2].strip()
    assert "cancelled" in succeeds("jobs", "cancel", later, url=url)
    assert "rescheduled" in succeeds("jobs", "reschedule", new, "--in", "1h", url=url)
    assert "discarded" in succeeds("jobs", "discard", new, "--yes", url=url)
    assert succeeds("jobs", "retry", "--type", "mail", "-y", url=url) == "1 retried\n"
    deleted = printed_json("prune", "--older-than", "0s", "-s", "success", "-y", url=url)
    assert deleted == {"deleted": 1}
    with Session(engine) as session:
        statuses = {job.status for job in session.query(ArchivedJob)}
        assert statuses == {"failure", "cancelled"}
        assert UUID(kept.strip()) in {job.job_id for job in session.query(Job)}


def test_recurring_jobs(producer: Place, engine: Engine) -> None:
    """They are listed, run now, paused and resumed."""
    url = url_of(engine)
    with Session(engine) as session, session.begin():
        manage.schedule(session, "nightly", "mail", 1, every=timedelta(days=1))
    assert "nightly" in succeeds("recurring", "list", url=url)
    job_id = succeeds("recurring", "run", "nightly", url=url).strip()
    assert printed_json("jobs", "show", job_id, url=url)["job_type"] == "mail"
    succeeds("recurring", "pause", "nightly", url=url)
    (row,) = printed_json("recurring", "list", url=url)["recurring"]
    assert row["paused"] is True
    succeeds("recurring", "resume", "nightly", url=url)


def test_errors_have_a_remedy(producer: Place, engine: Engine) -> None:
    """On the servers: a wrong database, and on MySQL and MariaDB a wrong password."""
    commands = (["status"], ["jobs", "list"], ["enqueue", "x"], ["migrate", "check"])
    if producer.server == "sqlite":
        wrong = {f"sqlite:///{engine.url.database}.none": "migrate upgrade"}
        commands = commands[:-1]
    else:
        nowhere = engine.url.set(database="no_such_database")
        wrong = {nowhere.render_as_string(hide_password=False): "check the database of the URL"}
    if producer.is_mysql:
        stranger = engine.url.set(username="stranger", password="s3cret")  # noqa: S106
        wrong[stranger.render_as_string(hide_password=False)] = "check the user and the password"
    for url, remedy in wrong.items():
        for command in commands:
            line = fails(1, *command, url=url)
            assert remedy in line, line
            assert "s3cret" not in line
