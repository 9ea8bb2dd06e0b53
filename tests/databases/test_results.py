"""Headers and results on every database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from threading import Timer
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    JobFailedError,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
)
from sqlalchemy_proletarian.manage import end_watch
from tests.integration.support import archived, eventually, only_archived, only_queued, put, queued

from .places import Note, Place
from .test_life import notes

HEADERS = {
    "text": "Grüße 😀 'quoted' \"\\",
    "nested": {"list": [1, [2.5, None], {}], "empty": []},
    "numbers": [2**63 - 1, -(2**63), 2.0**53, -0.5, 1e-300, 5e-324, 0.1, 123456789.123456789],
    "flags": [True, False, None, 1, 0],
}


def test_headers_come_back_equal(place: Place, engine: Engine) -> None:
    """In the handler, in events and in the archive, however they were enqueued."""
    with Session(engine) as session, session.begin():
        enqueue(session, "job", headers=HEADERS)
        enqueue(session.connection(), "job", headers=HEADERS)
        enqueue_many(session, [("job", None)] * 2, headers=HEADERS)
        enqueue_many(session, [{"job_type": "job", "headers": {**HEADERS, "n": n}} for n in (1, 2)])
        enqueue_unique(session, "job", unique_key="k", headers=HEADERS)
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("job")
    def handle(payload: None, job: Job) -> None:
        seen.append(job.headers)
        raise ValueError

    events: list[Any] = []
    place.run_all(engine, handlers, log=lambda _, data: events.append(data.get("headers")))
    expected = {"headers": HEADERS, "types": [bool, bool, type(None), int, int]}
    for found in (seen, [job.headers for job in archived(engine)]):
        assert len(found) == 7
        assert sorted(one.pop("n") for one in found if "n" in one) == [1, 2]
        for headers in found:
            assert headers == HEADERS
            assert [type(flag) for flag in headers["flags"]] == expected["types"]
    assert events.count(HEADERS) >= 5


def test_no_headers_are_null(producer: Place, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        enqueue(session, "job")
        enqueue_many(session, [("job", 1), {"job_type": "job", "headers": None}])
        enqueue_unique(session, "job", unique_key="k", headers={})
        enqueue_many(session, [("job", 1), {"job_type": "job", "headers": {"a": 1}}])
    with engine.connect() as connection:
        table = "job" if producer.server == "sqlite" else "proletarian.job"
        count = text(f"SELECT count(*) FROM {table} WHERE headers IS NULL")
        assert connection.scalar(count) == 5
    assert [job.headers for job in queued(engine) if job.headers] == [{"a": 1}]


def test_retry_keeps_the_headers(producer: Place, engine: Engine) -> None:
    job_id = put(engine, "job", headers=HEADERS)
    with Session(engine) as session, session.begin():
        manage.discard(session, job_id)
    with Session(engine) as session, session.begin():
        assert manage.retry(session, job_id)
    assert only_queued(engine).headers == HEADERS


@dataclass
class Total:
    amount: int
    text: str


def keeping() -> Handlers:
    handlers = Handlers()

    @handlers("kept", keep_result=True)
    def kept(payload: int) -> Total:
        return Total(payload, "Grüße 😀" * 50_000)

    @handlers("writes", keep_result=True)
    def writes(payload: int, session: Session) -> Total:
        session.add(Note(text=str(payload)))
        session.flush()
        return Total(payload, "")

    @handlers("bad", keep_result=True)
    def bad(payload: int, session: Session) -> Any:
        session.add(Note(text="bad"))
        session.flush()
        return object()

    @handlers("plain")
    def plain(payload: int) -> int:
        return payload

    return handlers


def test_results(place: Place, engine: Engine) -> None:
    """Long ones, too; a result that cannot be stored undoes what its handler wrote."""
    ids = {name: put(engine, name, 7) for name in ("kept", "writes", "bad", "plain")}
    assert place.run_all(engine, keeping()) == 4
    with Session(engine) as session:
        found = manage.result(session, ids["kept"], annotation=Total)
        assert found.value == Total(7, "Grüße 😀" * 50_000)
        assert manage.result(session, ids["writes"]).value == {"amount": 7, "text": ""}
        with pytest.raises(JobFailedError, match=r"result is a builtins\.object"):
            manage.result(session, ids["bad"])
    assert notes(engine) == ["7"]
    assert [job.result for job in archived(engine) if job.job_type == "plain"] == [None]


def test_waiting(place: Place, engine: Engine) -> None:
    """Several wait in threads for the jobs of a worker of this process."""
    ids = [put(engine, "writes", n) for n in range(5)]
    with ThreadPoolExecutor(5) as pool:
        waiting = [
            pool.submit(
                manage.wait_for, engine, job_id, timeout=timedelta(seconds=30), annotation=Total
            )
            for job_id in ids
        ]
        with place.worker(engine, keeping(), polling_interval=timedelta(seconds=0.2)):
            assert [future.result().value.amount for future in waiting] == [0, 1, 2, 3, 4]
    eventually(lambda: not end_watch._watches)


def test_a_worker_of_this_process_wakes_those_who_wait(
    producer: Place, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on databases without notifications."""
    monkeypatch.setattr(end_watch, "_FIRST_PAUSE", 60.0)
    job_id = put(engine, "kept", 3)
    late = Timer(0.5, producer.run_all, [engine, keeping()])
    late.start()
    try:
        found = manage.wait_for(engine, job_id, timeout=timedelta(seconds=30), annotation=Total)
    finally:
        late.join()
    assert found.value.amount == 3
    assert only_archived(engine).status == "success"
    eventually(lambda: not end_watch._watches)
