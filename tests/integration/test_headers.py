"""Headers: data that travels with a job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    Integer,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJob,
    Discard,
    Handlers,
    Job,
    JobMixin,
    ModelError,
    PayloadError,
    RetryAfter,
    Snooze,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
)
from sqlalchemy_proletarian.asyncio import enqueue as async_enqueue
from sqlalchemy_proletarian.asyncio import enqueue_many as async_enqueue_many
from sqlalchemy_proletarian.asyncio import enqueue_unique as async_enqueue_unique
from sqlalchemy_proletarian.testing import perform

from .kinds import Kind, either_sort_of_handler
from .loops import in_a_loop
from .support import (
    ArchivedEmailJob,
    EmailJob,
    Log,
    archived,
    fail,
    only_archived,
    only_queued,
    put,
    queued,
    run_all,
    succeed,
)

TRACE = {
    "traceparent": "00-ab-cd-01",
    "tenant": {"id": 7, "name": "Grüße 😀"},
    "flags": [True, None],
}
EMAIL = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}


@either_sort_of_handler
def test_a_handler_and_on_failed_read_the_headers(shop: Engine, kind: Kind) -> None:
    """Also when the job runs again; a job without headers has None."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("job", retry={"retries": 1, "delays": [0]})
    def handle(payload: bool, job: Job) -> None:
        seen.append(job.headers)
        if payload:
            raise ValueError

    failed: list[Any] = []
    put(shop, "job", payload=True, headers=TRACE)
    put(shop, "job", payload=False)
    kind.run_all(shop, handlers, on_failed=lambda job, _: failed.append(job.headers))
    assert sorted(seen, key=str) == [None, TRACE, TRACE]
    assert failed == [TRACE]
    assert [job.headers for job in archived(shop)] == [TRACE, None]


def test_events_have_the_headers_of_the_job(
    shop: Engine, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """As data, as attribute of the log record and in its text; a job without headers has none."""
    log = Log()
    handlers = Handlers()

    @handlers("job")
    def handle(payload: str) -> None:
        if payload == "snooze":
            raise Snooze(timedelta(days=1))
        if payload == "discard":
            raise Discard("no")

    for payload in ("snooze", "discard", "succeed"):
        put(shop, "job", payload, headers={"request": payload})
    put(shop, "job", "succeed")
    with caplog.at_level(logging.DEBUG, "sqlalchemy_proletarian"):
        kind.run_all(shop, handlers, log=log)
    events = {(name, data["headers"]["request"]) for name, data in log.entries if "headers" in data}
    assert events == {
        *(("handling-job", payload) for payload in ("snooze", "discard", "succeed")),
        ("job-finished", "succeed"),
        ("job-snoozed", "snooze"),
        ("handle-job-exception", "discard"),
        ("not-retrying", "discard"),
        ("job-finished", "discard"),
    }
    assert sum("headers" not in data for data in log.data("job-finished")) == 1
    records = [vars(record) for record in caplog.records if "headers" in vars(record)]
    assert {"request": "discard"} in [record["headers"] for record in records]
    assert any("headers={'request': 'discard'}" in record["message"] for record in records)


def _handler() -> Any:
    handlers = Handlers()

    @handlers("job")
    def job(payload: Any) -> None: ...

    return job


PRODUCERS: dict[str, Callable[[Any], object]] = {
    "enqueue": lambda session: enqueue(session, "job", headers=TRACE),
    "handler": lambda session: _handler().enqueue(session, 1, headers=TRACE),
    "unique": lambda session: enqueue_unique(session, "job", unique_key="k", headers=TRACE),
    "many": lambda session: enqueue_many(session, [("job", 1)], headers=TRACE),
    "own row": lambda session: enqueue_many(session, [{"job_type": "job", "headers": TRACE}]),
    "object": lambda session: enqueue(session, Job(job_type="job"), headers=TRACE),
    "own object": lambda session: enqueue(session, Job(job_type="job", headers=TRACE)),
}


@pytest.mark.parametrize("produce", PRODUCERS.values(), ids=PRODUCERS)
def test_every_way_to_enqueue_takes_headers(shop: Engine, produce: Any) -> None:
    """With a session, and with a Connection."""
    with Session(shop) as session, session.begin():
        produce(session)
    assert only_queued(shop).headers == TRACE
    run_all(shop, succeed)
    with shop.begin() as connection:
        produce(connection)
    assert only_queued(shop).headers == TRACE


def test_an_added_object_has_its_headers(shop: Engine) -> None:
    with Session(shop) as session, session.begin():
        session.add(Job(job_type="job", headers=MappingProxyType(TRACE)))
    assert only_queued(shop).headers == TRACE
    with pytest.raises(PayloadError, match=r"headers\['at'\] is a datetime.datetime"):
        Job(job_type="job", headers={"at": datetime(2026, 1, 1, tzinfo=UTC)})


@in_a_loop
async def test_in_asyncio(shop: Engine, loop_engine: AsyncEngine) -> None:
    """The awaitable variants take headers, too."""
    async with AsyncSession(loop_engine) as session, session.begin():
        enqueue(session, "job", headers=TRACE)
        await async_enqueue_many(session, [("job", 1)] * 2, headers=TRACE)
        rows = [{"job_type": "job", "headers": {"n": n}} for n in range(2)]
        await async_enqueue_many(session, rows)
        await async_enqueue_unique(session, "job", unique_key="k", headers=TRACE)
    async with loop_engine.begin() as connection:
        await async_enqueue(connection, "job", headers=TRACE)
    found = [job.headers for job in queued(shop)]
    assert found.count(TRACE) == 5
    assert {"n": 0} in found
    assert {"n": 1} in found


def test_rows_have_their_own_headers_or_those_of_the_call(shop: Engine) -> None:
    """A row can also have none. 1 and True are different."""
    rows = [
        {"job_type": "a", "headers": {"n": 1}},
        {"job_type": "b", "headers": {"n": True}},
        {"job_type": "c", "headers": None},
        {"job_type": "d"},
        ("e", None),
    ]
    with Session(shop) as session, session.begin():
        assert enqueue_many(session, rows, headers=TRACE) == 5
    found = {job.job_type: job.headers for job in queued(shop)}
    assert found == {"a": {"n": 1}, "b": {"n": True}, "c": None, "d": TRACE, "e": TRACE}
    assert found["b"]["n"] is True


@pytest.mark.parametrize("count", [1, 3])
def test_rows_with_headers_are_inserted_as_fast_as_others(shop: Engine, count: int) -> None:
    """One statement, with a parameter for each column, whether the headers differ or not."""
    statements: list[tuple[str, Any]] = []
    event.listen(shop, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    rows = [{"job_type": "job", "headers": {"n": n % count}} for n in range(50)]
    with shop.begin() as connection:
        enqueue_many(connection, rows)
    inserts = [parameters for text_, parameters in statements if "INSERT" in text_]
    assert len(inserts) == 1
    assert len(inserts[0]) < 15
    assert sorted(job.headers["n"] for job in queued(shop)) == sorted(n % count for n in range(50))


def test_a_job_without_headers_has_null(shop: Engine) -> None:
    """Not the null of JSON, however it was enqueued, and in the archive, too."""
    for produce in PRODUCERS.values():
        with Session(shop) as session, session.begin():
            produce(session)
        run_all(shop, succeed)
    with Session(shop) as session, session.begin():
        session.execute(text("DELETE FROM proletarian.archived_job"))
        enqueue(session, "job")
        enqueue(session, "job", headers={})
        enqueue(session, Job(job_type="job", headers={}))
        enqueue_many(session, [("job", 1), ("job", 2)], headers=None)
        enqueue_unique(session, "job", unique_key="k", headers=None)
    with shop.begin() as connection:
        enqueue(connection, "job")
    nulls = text("SELECT count(*) FROM proletarian.job WHERE headers IS NULL")
    with shop.connect() as connection:
        assert connection.scalar(nulls) == 7
    assert run_all(shop, succeed) == 7
    with shop.connect() as connection:
        assert connection.scalar(text(str(nulls).replace("job ", "archived_job "))) == 7


class Kinds(StrEnum):
    A = "a"


class Number(IntEnum):
    ONE = 1


def test_equal_values_of_other_types_become_those_of_json(shop: Engine) -> None:
    put(shop, "job", headers={Kinds.A: Kinds.A, "n": Number.ONE, "t": (1, 2), "x": 2.0**53})
    assert only_queued(shop).headers == {"a": "a", "n": 1, "t": [1, 2], "x": 2.0**53}


CYCLE: dict[str, Any] = {}
CYCLE["again"] = CYCLE


@pytest.mark.parametrize(
    ("headers", "error", "message"),
    [
        ("text", TypeError, "headers must be a mapping of strings to JSON values, not 'text'"),
        ([("a", 1)], TypeError, "headers must be a mapping"),
        ({1: "a"}, PayloadError, "headers has the key 1, which is not a string"),
        ({"a": {2: "b"}}, PayloadError, r"headers\['a'\] has the key 2, which is not a string"),
        ({"a": [Decimal(1)]}, PayloadError, r"headers\['a'\]\[0\] is a decimal.Decimal"),
        ({"a": b"x"}, PayloadError, r"headers\['a'\] is a builtins.bytes"),
        ({"a": {1}}, PayloadError, r"headers\['a'\] is a builtins.set"),
        ({"a": float("nan")}, PayloadError, r"headers\['a'\] is nan"),
        ({"a": 1e23}, PayloadError, r"headers\['a'\] is 1e\+23, which databases do not store"),
        ({"a": 2**63}, PayloadError, r"headers\['a'\] is an integer of more than 64 bits"),
        ({"a": "x\0"}, PayloadError, r"headers\['a'\] has a NUL or a lone surrogate"),
        ({"a\ud800": 1}, PayloadError, r"headers\['a\\ud800'\] has a NUL or a lone surrogate"),
        (CYCLE, PayloadError, "contains itself or is nested too deeply"),
    ],
)
def test_headers_that_would_not_come_back_equal_are_rejected(
    shop: Engine, headers: Any, error: type[Exception], message: str
) -> None:
    """By each function, and nothing is enqueued. The message names the place."""
    with Session(shop) as session, session.begin():
        for call in (
            lambda: enqueue(session, "job", headers=headers),
            lambda: enqueue(session.connection(), "job", headers=headers),
            lambda: enqueue_unique(session, "job", unique_key="k", headers=headers),
            lambda: enqueue_many(session, [{"job_type": "job", "headers": headers}]),
            lambda: Job(job_type="job", headers=headers),
        ):
            with pytest.raises(error, match=message):
                call()
    assert queued(shop) == []


def test_a_later_change_of_the_mapping_has_no_effect(shop: Engine) -> None:
    headers = {"a": {"b": 1}}
    with Session(shop) as session, session.begin():
        enqueue(session, "job", headers=headers)
        headers["a"]["b"] = 2
    assert only_queued(shop).headers == {"a": {"b": 1}}


def test_retry_reschedule_and_cancel_keep_the_headers(shop: Engine) -> None:
    job_id = put(shop, "job", headers=TRACE)
    run_all(shop, fail)
    with Session(shop) as session, session.begin():
        new = manage.retry(session, job_id)
        manage.reschedule(session, new, process_in=timedelta(days=1))
    assert only_queued(shop).headers == TRACE
    with Session(shop) as session, session.begin():
        manage.cancel(session, new)
    assert [job.headers for job in archived(shop)] == [TRACE, TRACE]


def test_a_query_finds_jobs_by_a_header(shop: Engine) -> None:
    """Also with DISTINCT."""
    put(shop, "job", headers={"tenant": "a"})
    put(shop, "job", headers={"tenant": "b"})
    put(shop, "job")
    with Session(shop) as session:
        of_a = select(Job).where(Job.headers["tenant"].as_string() == "a").distinct()
        assert session.scalars(of_a).one().headers == {"tenant": "a"}
    run_all(shop, fail)
    with Session(shop) as session, session.begin():
        criterion = ArchivedJob.headers["tenant"].as_string() == "b"
        assert manage.retry_where(session, criterion) == 1


def test_tables_of_your_own_have_headers(shop: Engine, kind: Kind) -> None:
    put(shop, "job", headers=TRACE, job_model=EmailJob)
    kind.run_all(shop, succeed, **EMAIL)
    assert only_archived(shop, ArchivedEmailJob).headers == TRACE


def test_a_column_of_another_type_is_rejected() -> None:
    """One that is JSON, too, takes the place of the library's."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ModelError, match=r"column headers of .*Bad is Integer.*another name"):

        class Bad(JobMixin, Base):
            __tablename__ = "bad"
            headers: Mapped[int] = mapped_column(Integer)  # type: ignore[assignment]

    class Good(JobMixin, Base):
        __tablename__ = "good"
        headers: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine, [Good.__table__])  # type: ignore[list-item]
    with Session(engine) as session:
        enqueue(session, "job", headers=TRACE, job_model=Good)
        session.commit()
        assert session.scalars(select(Good)).one().headers == TRACE


def test_headers_in_the_test_kit(shop: Engine) -> None:
    """``perform`` runs a handler with headers."""
    handlers = Handlers()
    seen = []

    @handlers("job")
    def handle(payload: int, job: Job) -> None:
        seen.append(job.headers)

    with Session(shop) as session:
        perform(handle, 1, session=session, headers=TRACE)
    assert seen == [TRACE]


def test_rows_by_hand_may_have_any_json(shop: Engine, kind: Kind) -> None:
    """A worker runs them, and reports what they have."""
    log = Log()
    for value in ("null", "[1]", '"text"'):
        put(shop, "job")
        with shop.begin() as connection:
            change = text("UPDATE proletarian.job SET headers = CAST(:value AS jsonb)")
            connection.execute(change, {"value": value})
        kind.run_all(shop, fail, log=log)
    seen = [data.get("headers") for data in log.data("not-retrying")]
    assert seen == [None, [1], "text"]


def _plain_insert(connection: Connection) -> None:
    connection.execute(insert(Job).values(job_type="job", queue="default", payload="null"))


def test_the_column_may_be_left_out(shop: Engine) -> None:
    """As by a worker of the Clojure library, which does not know it."""
    with shop.begin() as connection:
        _plain_insert(connection)
        assert connection.scalar(select(func.count()).select_from(Job)) == 1
    assert run_all(shop, succeed) == 1
    assert only_archived(shop).headers is None


def test_a_retry_that_is_delayed_keeps_the_headers(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()

    @handlers("job")
    def handle(payload: None) -> None:
        raise RetryAfter(timedelta(days=1))

    put(shop, "job", headers=TRACE)
    kind.run_all(shop, handlers)
    assert only_queued(shop).headers == TRACE
