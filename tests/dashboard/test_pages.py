"""What the pages of the dashboard show."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, text, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import (
    ArchivedJob,
    Base,
    Handlers,
    QueueWorker,
    RecurringJob,
    RunningJob,
    enqueue,
    enqueue_many,
    manage,
    utcnow,
)
from sqlalchemy_proletarian.dashboard import JobTables
from tests.integration.orders import ArchivedShopJob, Order, SendInvoice, ShopJob

from .site import Visitor

HOSTILE = "<script>alert('x')</script>{{ 7 * 191 }}&quot;\"'>"

handlers = Handlers()


@handlers("ok")
def ok(payload: Any) -> None: ...


@handlers("email")
def email(payload: Any) -> None:
    raise TimeoutError(f"mail server {payload} did not answer within {payload} s")


@handlers("hostile")
def hostile(payload: Any) -> None:
    raise ValueError(HOSTILE)


def put(engine: Engine, job_type: str, payload: Any = None, **options: Any) -> Any:
    with Session(engine) as session, session.begin():
        return enqueue(session, job_type, payload, **options).job_id


def run(engine: Engine) -> None:
    QueueWorker(engine, handlers).drain()


def test_the_overview_says_what_is_wrong_first(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("email", n) for n in range(9)])
        enqueue(session, "ok", queue="stuck", clock=lambda: utcnow() - timedelta(minutes=12))
        enqueue(session, "ok", queue="paused")
        manage.pause(session, "paused", paused_by="ada")
    run(engine)
    page = Visitor(engine).text("/jobs/")
    assert page.startswith(
        "Overview Problems “stuck” is stuck: 1 job due, the oldest for 12 min, and nothing runs."
    )
    assert "email fails: 9 of 9 jobs in the last 5 min." in page
    assert page.index("email fails") < page.index("“paused” is paused, with 1 job due.")
    assert "paused by ada" in page


def test_an_overview_without_problems(engine: Engine) -> None:
    put(engine, "ok")
    run(engine)
    page = Visitor(engine).get("/jobs/")
    assert "No problems." in page
    assert "Jobs that ended in the last hour: 1 ended well, 0 failed" in page


def test_recurring_jobs(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        manage.schedule(session, "nightly", job_type="ok", cron="0 3 * * *", timezone="Europe/Oslo")
        manage.schedule(session, "late", job_type="ok", every=timedelta(hours=1))
        late = update(RecurringJob).where(RecurringJob.name == "late")
        session.execute(late.values(next_at=utcnow() - timedelta(hours=1)))
    visitor = Visitor(engine)
    assert "nightly ok 0 3 * * * Europe/Oslo" in visitor.text("/jobs/recurring")
    overview = visitor.text("/jobs/")
    assert "late should have been enqueued 60 min ago" in overview
    assert "nightly ok 0 3 * * * Europe/Oslo" in overview


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {"scheduled"}),
        ("state=archived", {"ok", "email"}),
        ("state=failure", {"email"}),
        ("state=failure&text=SERVER+7", {"email"}),
        ("state=failure&text=server+8", set()),
        ("state=success&text=needle", {"ok"}),
        ("state=success&queue=other", set()),
        ("state=archived&type=ok", {"ok"}),
        ("state=archived&newer=1h", {"ok", "email"}),
        ("state=archived&older=1h", set()),
    ],
)
def test_jobs_are_filtered(engine: Engine, query: str, found: set[str]) -> None:
    put(engine, "ok", {"text": "a needle in a haystack"})
    put(engine, "email", 7)
    run(engine)
    put(engine, "scheduled", process_in=timedelta(hours=1))
    html = Visitor(engine).get(f"/jobs/jobs?{query}")
    assert set(re.findall(r"<td>(ok|email|scheduled)</td>", html)) == found


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("state=lost", "There is no state 'lost'."),
        ("newer=yesterday", "'yesterday' is no duration: write a number and s, m, h, d or w"),
        ("after=nonsense", "is not a position in this list"),
    ],
)
def test_wrong_filters_are_explained(engine: Engine, query: str, message: str) -> None:
    assert message in Visitor(engine).text(f"/jobs/jobs?{query}")


def test_pages_follow_one_another(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("ok", n) for n in range(120)])
    visitor = Visitor(engine)
    path: str | None = "/jobs/jobs"
    seen: list[str] = []
    while path is not None:
        html = visitor.get(path)
        seen += re.findall(r'name="name" value="([^"]+)"', html)
        following = re.search(r'rel="next" href="/admin/queue([^"]+)"', html)
        path = following[1].replace("&amp;", "&") if following else None
    assert len(seen) == len(set(seen)) == 120


def test_the_search_finds_a_job_by_its_id(engine: Engine) -> None:
    job_id = put(engine, "ok", {"order": 7})
    assert Visitor(engine).text(f"/jobs/jobs?text={job_id}").startswith("ok due")


def test_failures_that_are_alike_are_one_row(engine: Engine) -> None:
    for n in range(5):
        put(engine, "email", n)
    put(engine, "hostile")
    run(engine)
    page = Visitor(engine).text("/jobs/failures")
    assert "5 email TimeoutError: mail server 4 did not answer within 4 s" in page
    assert "1 hostile" in page


def test_the_page_of_a_job(engine: Engine) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    job_id = put(engine, "email", 3, headers={"traceparent": parent}, unique_key="mail 3")
    run(engine)
    visitor = Visitor(engine, trace_url="https://traces.example/{trace_id}")
    page = visitor.text(f"/jobs/jobs/{job_id}")
    assert page.startswith("email failure")
    for part in (
        "enqueued",
        "failed after 1 attempt",
        "TimeoutError: mail server 3 did not answer within 3 s",
        "Traceback (most recent call last):",
        "Payload 3",
        '"traceparent"',
        "Unique key mail 3",
    ):
        assert part in page
    html = visitor.get(f"/jobs/jobs/{job_id}")
    assert "https://traces.example/4bf92f3577b34da6a3ce929d0e0e4736" in html


def test_a_crashed_worker_is_a_problem(engine: Engine) -> None:
    """Its marker is still there, and its connection is gone."""
    job_id = put(engine, "ok")
    with Session(engine) as session, session.begin():
        started = utcnow() - timedelta(minutes=3)
        session.add(RunningJob(job_id=job_id, worker="w-1 x", batch_size=1, started_at=started))
    visitor = Visitor(engine)
    overview = visitor.text("/jobs/")
    assert "The worker w-1 x has crashed while it ran 1 job." in overview
    assert "3 min ago w-1 x crashed" in overview


def test_a_job_that_does_not_exist(engine: Engine) -> None:
    visitor = Visitor(engine)
    for job_id in ("00000000-0000-7000-8000-000000000000", "nonsense"):
        assert f"There is no job {job_id}." in visitor.text(f"/jobs/jobs/{job_id}", 404)
    assert "There is no such page." in visitor.text("/other/", 404)


def test_hostile_texts_are_escaped(engine: Engine) -> None:
    """In every place where they are shown."""
    job_id = put(engine, "hostile", HOSTILE, queue=HOSTILE, headers={HOSTILE: HOSTILE})
    QueueWorker(engine, handlers, queues=[HOSTILE]).drain()
    waiting = put(engine, HOSTILE, HOSTILE, queue=HOSTILE)
    visitor = Visitor(engine, title=HOSTILE)
    for path in (
        "/jobs/",
        "/jobs/jobs",
        "/jobs/jobs?state=failure",
        "/jobs/failures",
        f"/jobs/jobs/{job_id}",
        f"/jobs/jobs/{waiting}",
        "/jobs/jobs?queue=%3Cscript%3Ealert",
    ):
        html = visitor.get(path)
        assert "<script>alert" not in html
        assert "1337" not in html


def test_payloads_are_redacted(engine: Engine) -> None:
    job_id = put(engine, "ok", {"card": "4111"})

    def redact(job_type: str, payload: Any) -> Any:
        return dict.fromkeys(payload, "***")

    page = Visitor(engine, redact=redact).text(f"/jobs/jobs/{job_id}")
    assert '"card": "***"' in page
    assert "4111" not in page

    def broken(job_type: str, payload: Any) -> Any:
        raise RuntimeError

    assert "4111" not in Visitor(engine, redact=broken).text(f"/jobs/jobs/{job_id}")


def test_tabs_for_tables_of_ones_own_with_related_rows(shop: Engine) -> None:
    with Session(shop) as session, session.begin():
        order = Order(invoiced=4711)
        job = SendInvoice(order=order)
        session.add_all([order, job])
        session.flush()
        job_id = job.job_id
    tables = [
        JobTables(),
        JobTables(
            name="The shop",
            job_model=ShopJob,
            archived_job_model=ArchivedShopJob,
            running_job_model=None,
        ),
    ]
    visitor = Visitor(shop, tables=tables)
    assert "The shop" in visitor.get("/jobs/")
    page = visitor.text(f"/the-shop/jobs/{job_id}")
    assert "shop_order" in page
    assert "invoiced 4711" in page
    hidden = Visitor(shop, tables=tables, show_related=False)
    assert "4711" not in hidden.text(f"/the-shop/jobs/{job_id}")
    with pytest.raises(ValueError, match="different names"):
        Visitor(shop, tables=[JobTables(), JobTables()])


def test_an_error_of_the_database_is_a_page(url: URL) -> None:
    """It names the error, and no values of the statement or the connection."""
    elsewhere = create_engine(f"{url.drivername}://ada:secret@127.0.0.1:1/shop")
    page = Visitor(elsewhere).get("/jobs/", 503)
    assert "The database failed" in page
    assert "secret" not in page


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_engine(engine: Engine, url: URL, driver: str) -> None:
    job_id = put(engine, "ok", 5)
    asynchronous = create_async_engine(url.set(drivername=f"postgresql+{driver}"))
    visitor = Visitor(asynchronous)
    with visitor.client:
        assert "ok" in visitor.text("/jobs/jobs")
        assert visitor.text(f"/jobs/jobs/{job_id}").startswith("ok due")
        assert "1 job cancelled." in visitor.act("cancel", job_id)
        visitor.client.portal.call(asynchronous.dispose)  # type: ignore[union-attr]
    with Session(engine) as session:
        assert session.get_one(ArchivedJob, job_id).status == "cancelled"


def test_sqlite_and_a_sessionmaker(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/jobs.db").execution_options(
        schema_translate_map={"proletarian": None}
    )
    Base.metadata.create_all(engine)
    put(engine, "email", 4)
    run(engine)
    visitor = Visitor(sessionmaker(engine))
    assert "email fails: 1 of 1 job" in visitor.text("/jobs/")
    assert "mail server 4" in visitor.text("/jobs/failures")


def test_a_statement_has_a_limit(engine: Engine) -> None:
    """Somebody who searches a large table does not keep the database busy."""
    visitor = Visitor(engine, statement_timeout=timedelta(milliseconds=200))
    with engine.connect() as connection, connection.begin():
        connection.execute(text("LOCK TABLE proletarian.job"))
        assert visitor.text("/jobs/jobs", 503).startswith("The database failed")


def test_what_cannot_be_a_dashboard(engine: Engine) -> None:
    with pytest.raises(TypeError, match="needs an Engine, an AsyncEngine"):
        Visitor("postgresql://")
    with pytest.raises(ValueError, match="statement_timeout"):
        Visitor(engine, statement_timeout=timedelta(0))
