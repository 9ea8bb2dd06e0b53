"""``proletarian jobs``, ``enqueue``, ``prune``, ``queues`` and ``recurring`` on PostgreSQL."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, Engine, func, insert, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    PausedQueue,
    QueueWorker,
    RecurringJob,
    RetryStrategy,
    enqueue,
    enqueue_many,
    manage,
    utcnow,
)

from .cli_runs import cli, fails, printed_json, succeeds
from .programs import PROLETARIAN, environment, plain
from .terminal import on_terminal

DAY = timedelta(days=1)

handlers = Handlers()


@handlers("ok")
def ok(payload: Any) -> None: ...


@handlers("bad")
def bad(payload: Any) -> None:
    raise ValueError("[bold]no\x1b[31m such mail")


@handlers("later", retry=RetryStrategy(retries=1, delays=[DAY]))
def later(payload: Any) -> None:
    raise ValueError("later")


@pytest.fixture
def history(engine: Engine) -> dict[str, UUID]:
    """A job in each state, by the names of states."""
    ids: dict[str, UUID] = {}
    with Session(engine) as session, session.begin():
        ids["success"] = enqueue(session, "ok", 1).job_id
        ids["failure"] = enqueue(session, "bad", {"a": "é"}).job_id
        ids["retrying"] = enqueue(session, "later").job_id
    QueueWorker(engine, handlers).drain()
    with Session(engine) as session, session.begin():
        ids["due"] = enqueue(session, "ok", 2).job_id
        ids["scheduled"] = enqueue(session, "ok", 3, queue="mail", process_in=DAY).job_id
        ids["cancelled"] = enqueue(session, "ok", 4).job_id
        session.flush()
        manage.cancel(session, ids["cancelled"], reason="twice")
    return ids


def listed(url: URL, *arguments: str) -> list[str]:
    return [job["job_id"] for job in printed_json("jobs", "list", *arguments, url=url)["jobs"]]


def test_list_by_status_queue_and_type(url: URL, history: dict[str, UUID]) -> None:
    """Each status, queue and type selects its jobs; without a filter, the list has all queued."""
    for status, job_id in history.items():
        assert listed(url, "--status", status) == [str(job_id)]
    queued = {str(history[state]) for state in ("due", "scheduled", "retrying")}
    assert set(listed(url)) == queued
    assert listed(url, "--queue", "mail") == [str(history["scheduled"])]
    assert listed(url, "--type", "later") == [str(history["retrying"])]
    assert len(listed(url, "--status", "archived")) == 3
    assert len(listed(url, "-s", "success", "-s", "failure")) == 2
    assert listed(url, "--older-than", "1h") == []
    assert set(listed(url, "--newer-than", "1h")) == queued
    assert "is not a position" in fails(2, "jobs", "list", "--after", "x", url=url)
    assert "make two calls" in fails(2, "jobs", "list", "-s", "due", "-s", "success", url=url)


def test_the_keys_of_a_listed_job(url: URL, history: dict[str, UUID]) -> None:
    """The JSON keys are stable, and times are in UTC."""
    (job,) = printed_json("jobs", "list", "--status", "failure", url=url)["jobs"]
    assert set(job) == {
        *("job_id", "queue", "job_type", "status", "attempts", "priority", "enqueued_at"),
        *("process_at", "unique_key", "finished_at", "retried_at", "error"),
    }
    assert job["finished_at"].endswith("Z")
    assert abs(datetime.fromisoformat(job["finished_at"]) - utcnow()) < timedelta(minutes=1)
    assert job["error"] == "ValueError: [bold]no\x1b[31m such mail"


def test_pages(url: URL, engine: Engine) -> None:
    """``after`` continues behind a page, and no job is listed twice or left out."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("ok", n) for n in range(7)])
    pages = []
    more: list[str] = []
    while True:
        page = printed_json("jobs", "list", "--limit", "3", *more, url=url)
        pages.append([job["job_id"] for job in page["jobs"]])
        if page["after"] is None:
            break
        more = ["--after", page["after"]]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert len({job_id for page in pages for job_id in page}) == 7


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_fits_the_terminal(url: URL, history: dict[str, UUID], columns: int) -> None:
    """A terminal shows whole ids in a table that is not wider; markup and escapes do nothing."""
    arguments = [*PROLETARIAN, "jobs", "list", "--status", "failure"]
    with on_terminal(arguments, columns=columns, PROLETARIAN_URL=plain(url)) as terminal:
        assert terminal.end() == 0
    assert str(history["failure"]) in terminal.text
    assert max(map(len, terminal.text.splitlines())) <= columns
    assert "ago" in terminal.text or "now" in terminal.text
    assert ("[bold]no\\x1b[31m such mail" in terminal.text) is (columns == 120)
    assert "\x1b[31m such" not in terminal.raw


def test_show(url: URL, history: dict[str, UUID]) -> None:
    """The page of a job has its payload, error and times; JSON has everything."""
    page = succeeds("jobs", "show", history["failure"], url=url)
    for words in ("bad", "failure", '"a": "é"', "Traceback", "\\x1b[31m such mail", "Ended"):
        assert words in page
    assert max(map(len, page.splitlines())) < 200
    found = printed_json("jobs", "show", history["failure"], url=url)
    assert json.loads(found["payload"]) == {"a": "é"}
    assert "Traceback" in found["error"]
    assert (found["columns"], found["running"], found["deaths"]) == ({}, None, 0)
    assert "Attempts" in succeeds("jobs", "show", history["retrying"], url=url)
    assert "there is no job" in cli("jobs", "show", uuid4(), url=url).stderr
    assert cli("jobs", "show", uuid4(), url=url).returncode == 3
    assert "must be a UUID" in fails(2, "jobs", "show", "5", url=url)


def test_retry_by_id(url: URL, engine: Engine, history: dict[str, UUID]) -> None:
    """A failed job is enqueued once; the exit codes say what was not done."""
    output = succeeds("jobs", "retry", history["failure"], url=url)
    new_id = output.rpartition(" ")[2].strip()
    with Session(engine) as session:
        assert session.get_one(Job, UUID(new_id)).job_type == "bad"
    again = cli("jobs", "retry", history["failure"], url=url)
    assert (again.returncode, "retried before" in again.stderr) == (4, True)
    assert "as a new job" in succeeds("jobs", "show", history["failure"], url=url)
    missing = cli("jobs", "retry", uuid4(), url=url)
    assert (missing.returncode, "there is no such job" in missing.stderr) == (3, True)
    assert "it is queued" in cli("jobs", "retry", history["due"], url=url).stderr


def test_many_jobs_need_an_answer(url: URL, engine: Engine) -> None:
    """Without a terminal and --yes nothing happens, at once; with --yes all are changed."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("bad", n) for n in range(1200)])
    QueueWorker(engine, handlers).drain()
    assert "--yes" in fails(2, "jobs", "retry", "--type", "bad", url=url)
    assert "filter" in fails(2, "jobs", "retry", "--yes", url=url)
    assert "not both" in fails(2, "jobs", "retry", uuid4(), "--all", url=url)
    retry = "jobs", "retry", "--yes"
    assert succeeds(*retry, "--type", "bad", "--limit", 100, url=url) == "100 retried\n"
    assert succeeds(*retry, "--type", "bad", url=url) == "1,100 retried\n"
    assert succeeds(*retry, "--all", url=url) == "No such jobs.\n"
    done = printed_json("jobs", "cancel", "--type", "bad", "--limit", 1000, "--yes", url=url)
    assert done == {"counts": {"cancelled": 1000}, "jobs": []}
    assert succeeds("jobs", "discard", "--all", "-y", url=url) == "200 discarded\n"
    with Session(engine) as session:
        assert session.scalars(select(Job)).all() == []
        assert len(session.scalars(select(ArchivedJob)).all()) == 2400


def test_a_command_that_is_killed_can_be_repeated(url: URL, engine: Engine) -> None:
    """After SIGKILL in the middle, the second run retries the rest, and no job twice."""
    now = utcnow()
    rows = [
        {"job_id": uuid4(), "queue": "q", "job_type": "x", "status": "failure", "finished_at": now}
        for _ in range(6000)
    ]
    with engine.begin() as connection:
        connection.execute(insert(ArchivedJob), rows)

    def count() -> int:
        with Session(engine) as session:
            return session.scalar(select(func.count()).select_from(Job)) or 0

    retry = "jobs", "retry", "--all", "--yes"
    process = subprocess.Popen(
        [*PROLETARIAN, *retry], env=environment(PROLETARIAN_URL=plain(url)), stdout=subprocess.PIPE
    )
    with process:
        while count() == 0:
            assert process.poll() is None
        process.kill()
    retried = count()
    assert 0 < retried < 6000
    assert succeeds(*retry, url=url) == f"{6000 - retried:,} retried\n"
    assert count() == 6000


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 3)])
def test_the_question_on_a_terminal(
    url: URL, engine: Engine, answer: str, code: int, left: int
) -> None:
    """The question says how many jobs; only "y" changes them."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("ok", n) for n in range(3)], queue="mail")
    arguments = [*PROLETARIAN, "jobs", "cancel", "--queue", "mail"]
    with on_terminal(arguments, PROLETARIAN_URL=plain(url)) as terminal:
        terminal.wait_for("Cancel 3 jobs in queue mail? [y/N]")
        terminal.write(f"{answer}\n")
        assert terminal.end() == code
    with Session(engine) as session:
        assert len(session.scalars(select(Job)).all()) == left


def test_cancel_discard_and_reschedule_by_id(
    url: URL, engine: Engine, history: dict[str, UUID]
) -> None:
    """Each changes its job; a job that has ended is not changed."""
    assert "cancelled" in succeeds("jobs", "cancel", history["due"], "--reason", "no", url=url)
    assert "rescheduled" in succeeds("jobs", "reschedule", history["scheduled"], "--now", url=url)
    assert "discarded" in succeeds("jobs", "discard", history["retrying"], "-y", url=url)
    assert "terminal" in fails(2, "jobs", "discard", history["scheduled"], url=url)
    assert "one of --in" in fails(2, "jobs", "reschedule", history["scheduled"], url=url)
    ended = cli("jobs", "cancel", history["due"], url=url)
    assert (ended.returncode, "it has ended" in ended.stderr) == (4, True)
    with Session(engine) as session:
        assert session.get_one(ArchivedJob, history["due"]).error == "no"
        assert session.get_one(ArchivedJob, history["retrying"]).status == "failure"
        assert session.get_one(Job, history["scheduled"]).process_at <= utcnow()


def test_enqueue(url: URL, engine: Engine) -> None:
    """The command prints the id; the payload is JSON, from the argument or the standard input."""
    job_id = succeeds("enqueue", "ok", '{"a": [1, null]}', url=url).strip()
    options = ("--queue", "mail", "--priority", 2, "--in", "1h30m")
    other = succeeds("enqueue", "ok", "-", *options, url=url, given="[1.5]").strip()
    empty = printed_json("enqueue", "ok", "--at", "2099-01-01T00:00:00Z", url=url)["job_id"]
    with Session(engine) as session:
        jobs = {str(job.job_id): job for job in session.scalars(select(Job))}
    assert json.loads(jobs[job_id].payload) == {"a": [1, None]}
    assert (jobs[other].payload, jobs[other].queue, jobs[other].priority) == ("[1.5]", "mail", 2)
    assert jobs[other].process_at - jobs[other].enqueued_at == timedelta(minutes=90)
    assert (jobs[empty].payload, jobs[empty].process_at.year) == ("null", 2099)
    for wrong in (["{"], ["NaN"], ["1", "--in", "5"], ["1", "--priority", "10"], ["1", "-q", ""]):
        fails(2, "enqueue", "ok", *wrong, url=url)
    assert """quotation marks: '"Ada"'""" in fails(2, "enqueue", "ok", "Ada", url=url)
    keyed = "enqueue", "ok", "--unique-key", "k"
    succeeds(*keyed, url=url)
    taken = cli(*keyed, url=url)
    assert (taken.returncode, taken.stdout) == (4, "")


def test_prune(url: URL, history: dict[str, UUID]) -> None:
    """Only archived jobs of the age and status are deleted, after an answer or with --yes."""
    assert "--yes" in fails(2, "prune", "--older-than", "0s", url=url)
    assert printed_json("prune", "--older-than", "1h", "--yes", url=url) == {"deleted": 0}
    assert printed_json("prune", "--older-than", "1h", url=url) == {"deleted": 0}, "no question"
    prune = "prune", "--older-than", "0s"
    assert printed_json(*prune, "-s", "success", "-y", url=url) == {"deleted": 1}
    with on_terminal([*PROLETARIAN, *prune], PROLETARIAN_URL=plain(url)) as terminal:
        terminal.wait_for("Delete 2 archived jobs that ended more than 0 s ago? [y/N]")
        terminal.write("y\n")
        assert terminal.end() == 0
    assert "Deleted 2 archived jobs." in terminal.text
    assert len(listed(url)) == 3


def test_pause_and_resume_a_queue(url: URL, engine: Engine) -> None:
    """A pause is stored with its reason; a second one changes nothing."""
    assert succeeds("queues", "pause", "mail", "--reason", "down", "--by", "Ada", url=url)
    assert "already" in succeeds("queues", "pause", "mail", url=url)
    (queue,) = printed_json("queues", "list", url=url)["queues"]
    assert (queue["queue"], queue["due"]) == ("mail", 0)
    assert (queue["paused"]["by"], queue["paused"]["reason"]) == ("Ada", "down")
    assert "by Ada: down" in succeeds("queues", "list", url=url)
    assert "resumed" in succeeds("queues", "resume", "mail", url=url)
    assert "not paused" in succeeds("queues", "resume", "mail", url=url)
    with Session(engine) as session:
        assert session.scalars(select(PausedQueue)).all() == []


def test_recurring(url: URL, engine: Engine) -> None:
    """A recurring job can be listed, run now, paused and resumed."""
    with Session(engine) as session, session.begin():
        manage.schedule(session, "nightly", "ok", {"a": 1}, every=DAY, queue="mail", priority=2)
    (row,) = printed_json("recurring", "list", url=url)["recurring"]
    assert (row["name"], row["interval_seconds"], row["paused"]) == ("nightly", 86400, False)
    job_id = succeeds("recurring", "run", "nightly", url=url).strip()
    with Session(engine) as session:
        job = session.get_one(Job, UUID(job_id))
        assert (job.job_type, job.queue, job.priority) == ("ok", "mail", 2)
        assert (json.loads(job.payload), job.unique_key) == ({"a": 1}, None)
    assert "is paused" in succeeds("recurring", "pause", "nightly", url=url)
    assert "paused" in succeeds("recurring", "list", url=url)
    assert "already" in succeeds("recurring", "pause", "nightly", url=url)
    assert "is resumed" in succeeds("recurring", "resume", "nightly", url=url)
    for command in ("run", "pause", "resume"):
        fails(3, "recurring", command, "other", url=url)
    with Session(engine) as session:
        assert session.get_one(RecurringJob, "nightly").paused is False
