"""Sharing a table with a Clojure service: rows written by Clojure, and rows for Clojure."""

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

# Only the columns of the original. Its archived rows count the attempt that was made: insert 0.
INSERT = text(
    "insert into proletarian.job"
    " (job_id, queue, job_type, payload, attempts, enqueued_at, process_at) values"
    " (cast(:job_id as uuid), :queue, :job_type, :payload, 0,"
    " cast(:enqueued_at as timestamptz), cast(:process_at as timestamptz))"
)


def insert_rows(engine: Engine, *original: dict[str, Any]) -> None:
    """Insert rows as Clojure's Proletarian does."""
    with engine.begin() as connection:
        connection.execute(INSERT, list(original))


def clojure_row(name: str) -> dict[str, Any]:
    """Return a row written by Clojure's Proletarian, by its name."""
    (found,) = (original for original in ROWS if original["name"] == name)
    return found


def test_rows_written_by_clojure_run(engine: Engine, kind: Kind) -> None:
    """Every row written by Clojure runs with its payload and is archived unchanged."""
    insert_rows(engine, *ROWS)
    seen: list[tuple[str, str]] = []
    kind.run_all(
        engine,
        lambda job_type, payload: seen.append((job_type, edn(payload))),
        queues=sorted({original["queue"] for original in ROWS}),
        serializer=TRANSIT,
        clock=lambda: FAR_OFF,
    )
    assert sorted(seen) == sorted(
        (original["job_type"], edn(TRANSIT.decode(original["payload"]))) for original in ROWS
    )
    archived = {str(job.job_id): job for job in rows(engine, ArchivedJob)}
    assert rows(engine, Job) == []
    for original in ROWS:
        job = archived[original["job_id"]]
        assert (job.status, job.attempts) == ("success", 1)
        assert (job.queue, job.job_type) == (original["queue"], original["job_type"])
        assert job.payload == original["payload"]
        assert job.enqueued_at == datetime.fromisoformat(original["enqueued_at"])


@dataclass
class Mail:
    to: str
    subject: str


def test_typed_payloads_of_rows_written_by_clojure(engine: Engine, kind: Kind) -> None:
    """A map with keyword keys is converted to the handler's dataclass; attempts are counted."""
    insert_rows(engine, clojure_row("map-kw"))
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


def test_an_invalid_payload_fails_its_job(engine: Engine, kind: Kind) -> None:
    """A payload that is not valid Transit fails its job with the reason; other jobs succeed."""
    bad = {**clojure_row("map-kw"), "payload": '["^ ","~:at","~mxx"]'}
    insert_rows(engine, bad, clojure_row("set"))
    seen: list[Any] = []
    kind.run_all(engine, lambda _, payload: seen.append(payload), queues=SHARED, serializer=TRANSIT)
    assert seen == [{1}]
    archived = {str(job.job_id): job for job in rows(engine, ArchivedJob)}
    failed = archived[bad["job_id"]]
    assert failed.status == "failure"
    assert "PayloadError: the payload is not Transit: 'xx' cannot be read as ~m" in failed.error


def test_names_are_validated_when_enqueued(engine: Engine) -> None:
    """All functions reject names and payloads that a Clojure worker could not read."""
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


def test_rows_for_clojure(engine: Engine) -> None:
    """Rows written by Python have the same values as rows written by Clojure."""
    handlers = Handlers()

    @handlers(":my.app/send-email", queue=SHARED, serializer=TRANSIT)
    def send(payload: Mail) -> None: ...

    with Session(engine) as session, session.begin():
        send.enqueue(session, Mail("a@b.c", "hi"))
        enqueue_many(
            session, [(":my.app/b", {"n": 1})], queue=SHARED, serializer=TRANSIT, priority=9
        )
    original = clojure_row("map-kw")
    first, second = rows(engine, Job, Job.job_type.desc())
    assert (first.queue, first.job_type) == (SHARED, ":my.app/send-email")
    assert (first.payload, first.attempts) == (original["payload"], 0)
    assert first.process_at == first.enqueued_at
    assert second.payload == '["^ ","~:n",1]'


def test_a_job_that_is_already_archived_does_not_affect_others(engine: Engine, kind: Kind) -> None:
    """A finished job that was inserted again with its old id does not affect other jobs."""
    old = put(engine, ":a", "old", queue=SHARED, serializer=TRANSIT)
    seen: list[str] = []

    def run(worker_kind: Kind) -> None:
        worker_kind.run_all(
            engine, lambda _, payload: seen.append(payload), queues=SHARED, serializer=TRANSIT
        )

    run(kind)
    (archived,) = rows(engine, ArchivedJob)
    insert_rows(engine, {**clojure_row("map-kw"), "job_id": str(old), "payload": archived.payload})
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


def test_a_retried_job_for_clojure(engine: Engine, kind: Kind) -> None:
    """A retried job has the attempts and the due time that a Clojure worker uses."""
    job_id = put(engine, ":a", {"n": 1}, queue=SHARED, serializer=TRANSIT)
    handlers = Handlers(retry=RetryStrategy(retries=1, delays=[3_600_000]))

    @handlers(":a")
    def fail(payload: Any) -> None:
        raise ValueError

    kind.run_all(engine, handlers, queues=SHARED, serializer=TRANSIT)
    (job,) = rows(engine, Job)
    assert (job.job_id, job.attempts, job.payload) == (job_id, 1, '["^ ","~:n",1]')
    assert 3590 < (job.process_at - job.enqueued_at).total_seconds() < 3900
