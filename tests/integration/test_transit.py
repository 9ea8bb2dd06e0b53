"""One table for a Clojure service and a Python one: rows of the original, and rows for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    PayloadError,
    RetryStrategy,
    TransitSerializer,
    enqueue,
    enqueue_many,
    enqueue_unique,
    utcnow,
)
from tests.clojure import ARCHIVED_ROWS, JOB_ROWS, edn

from .kinds import Kind
from .support import put, rows

TRANSIT = TransitSerializer()
ROWS = JOB_ROWS + ARCHIVED_ROWS
FAR_OFF = datetime(2100, 1, 1, tzinfo=UTC)
SHARED = ":proletarian/default"

# The columns of the original, no others; its archive counts the attempt that was made.
INSERT = text(
    "insert into proletarian.job"
    " (job_id, queue, job_type, payload, attempts, enqueued_at, process_at) values"
    " (cast(:job_id as uuid), :queue, :job_type, :payload, 0,"
    " cast(:enqueued_at as timestamptz), cast(:process_at as timestamptz))"
)


def insert(engine: Engine, *given: dict[str, Any]) -> None:
    """Insert rows as the original does."""
    with engine.begin() as connection:
        connection.execute(INSERT, list(given))


def row(name: str) -> dict[str, Any]:
    """Return one of the original's rows by its name."""
    (found,) = (given for given in ROWS if given["name"] == name)
    return found


def test_rows_of_the_original_run(engine: Engine, kind: Kind) -> None:
    """Every row that Clojure wrote runs, with its payload, and is archived as it was enqueued."""
    insert(engine, *ROWS)
    seen: list[tuple[str, str]] = []
    kind.run_all(
        engine,
        lambda job_type, payload: seen.append((job_type, edn(payload))),
        queues=sorted({given["queue"] for given in ROWS}),
        serializer=TRANSIT,
        clock=lambda: FAR_OFF,
    )
    assert sorted(seen) == sorted(
        (given["job_type"], edn(TRANSIT.decode(given["payload"]))) for given in ROWS
    )
    archived = {str(job.job_id): job for job in rows(engine, ArchivedJob)}
    assert rows(engine, Job) == []
    for given in ROWS:
        job = archived[given["job_id"]]
        assert (job.status, job.attempts) == ("success", 1)
        assert (job.queue, job.job_type) == (given["queue"], given["job_type"])
        assert job.payload == given["payload"]
        assert job.enqueued_at == datetime.fromisoformat(given["enqueued_at"])


@dataclass
class Mail:
    to: str
    subject: str


def test_typed_handler_of_rows_of_the_original(engine: Engine, kind: Kind) -> None:
    """A handler's dataclass is filled from a map with keyword keys; attempts are those made."""
    insert(engine, row("map-kw"))
    handlers, seen = Handlers(), []

    @handlers(":my.app/interop", retry=RetryStrategy(retries=2))
    def interop(payload: Mail, job: Job) -> None:
        seen.append((payload, job.attempts))
        if job.attempts < 3:
            raise ValueError

    kind.run_all(engine, handlers, queues=SHARED, serializer=TRANSIT)
    assert seen == [(Mail("a@b.c", "hi"), attempt) for attempt in (1, 2, 3)]
    (job,) = rows(engine, ArchivedJob)
    assert (job.status, job.attempts) == ("success", 3)


def test_undecodable_row_fails_alone(engine: Engine, kind: Kind) -> None:
    """A payload that is no Transit fails its own job, with the reason, and no other."""
    bad = {**row("map-kw"), "payload": '["^ ","~:at","~mxx"]'}
    insert(engine, bad, row("set"))
    seen: list[Any] = []
    kind.run_all(engine, lambda _, payload: seen.append(payload), queues=SHARED, serializer=TRANSIT)
    assert seen == [{1}]
    archived = {str(job.job_id): job for job in rows(engine, ArchivedJob)}
    failed = archived[bad["job_id"]]
    assert failed.status == "failure"
    assert "PayloadError: the payload is not Transit: 'xx' cannot be read as ~m" in failed.error


def test_names_are_checked_at_enqueue(engine: Engine) -> None:
    """What would stop a Clojure worker is refused at the call, whichever it is."""
    handlers = Handlers()

    @handlers(":my.app/send", serializer=TRANSIT)
    def send(payload: Mail) -> None: ...

    transit: Any = {"serializer": TRANSIT}
    job_type = pytest.raises(ValueError, match="job_type must be written as a keyword")
    queue = pytest.raises(ValueError, match=r"queue must be written as a keyword .* not 'default'")
    with Session(engine) as session:
        with job_type:
            enqueue(session, "mail@host", queue=SHARED, **transit)
        with queue:
            enqueue(session, ":send", **transit)
        with job_type:
            enqueue_many(session, [("send", 1)], queue=SHARED, **transit)
        with queue:
            enqueue_unique(session, ":send", unique_key="a", **transit)
        with queue:
            send.enqueue(session, Mail("a", "b"))
        with pytest.raises(PayloadError, match=r"payload\['to'\] is a"):
            enqueue(session, ":send", {"to": object()}, queue=SHARED, **transit)
        assert not session.new
        assert session.scalar(select(func.count()).select_from(Job)) == 0


def test_row_for_the_original(engine: Engine) -> None:
    """A row of ours has in the original's columns what the original would have written."""
    handlers = Handlers()

    @handlers(":my.app/send-email", queue=SHARED, serializer=TRANSIT)
    def send(payload: Mail) -> None: ...

    with Session(engine) as session, session.begin():
        send.enqueue(session, Mail("a@b.c", "hi"))
        enqueue_many(
            session, [(":my.app/b", {"n": 1})], queue=SHARED, serializer=TRANSIT, priority=9
        )
    given = row("map-kw")
    first, second = rows(engine, Job, Job.job_type.desc())
    assert (first.queue, first.job_type) == (SHARED, ":my.app/send-email")
    assert (first.payload, first.attempts) == (given["payload"], 0)
    assert first.process_at == first.enqueued_at
    assert second.payload == '["^ ","~:n",1]'


def test_job_that_the_archive_has_already(engine: Engine, kind: Kind) -> None:
    """A finished job that somebody put back with its old id holds up no other."""
    old = put(engine, ":a", "old", queue=SHARED, serializer=TRANSIT)
    seen: list[str] = []

    def run(worker_kind: Kind) -> None:
        worker_kind.run_all(
            engine, lambda _, payload: seen.append(payload), queues=SHARED, serializer=TRANSIT
        )

    run(kind)
    (archived,) = rows(engine, ArchivedJob)
    insert(engine, {**row("map-kw"), "job_id": str(old), "payload": archived.payload})
    put(engine, ":a", "new", queue=SHARED, serializer=TRANSIT)
    run(kind)
    assert seen.count("old") > 1
    assert "new" in seen
    finished = rows(engine, ArchivedJob, ArchivedJob.enqueued_at)
    assert [job.payload for job in finished] == ['["~#\'","old"]', '["~#\'","new"]']
    assert finished[0].finished_at == archived.finished_at
    (waiting,) = rows(engine, Job)
    assert (waiting.job_id, waiting.attempts) == (old, 1)
    assert waiting.process_at > utcnow()
    if not kind.leased:
        assert "duplicate key" in waiting.error


def test_failure_and_retries_for_the_original(engine: Engine, kind: Kind) -> None:
    """A job that our worker put back has the attempts and the time that the original goes by."""
    job_id = put(engine, ":a", {"n": 1}, queue=SHARED, serializer=TRANSIT)
    handlers = Handlers(retry=RetryStrategy(retries=1, delays=[3_600_000]))

    @handlers(":a")
    def fail(payload: Any) -> None:
        raise ValueError

    kind.run_all(engine, handlers, queues=SHARED, serializer=TRANSIT)
    (job,) = rows(engine, Job)
    assert (job.job_id, job.attempts, job.payload) == (job_id, 1, '["^ ","~:n",1]')
    assert 3590 < (job.process_at - job.enqueued_at).total_seconds() < 3900
