"""Who may see the dashboard, and who may change something with it."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.testclient import TestClient

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    PausedQueue,
    QueueWorker,
    enqueue,
    enqueue_many,
    manage,
)
from sqlalchemy_proletarian.dashboard import Action, dashboard

from .site import ROOT, Visitor

PATHS = ("/", "/jobs/", "/jobs/jobs", "/jobs/failures", "/jobs/recurring", "/jobs/jobs/1")


@pytest.fixture
def job_id(engine: Engine) -> UUID:
    with Session(engine) as session, session.begin():
        return enqueue(session, "mail", 1).job_id


def is_queued(engine: Engine, job_id: UUID) -> bool:
    with Session(engine) as session:
        return session.get(Job, job_id) is not None


# Seeing.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("authorize", [None, lambda _: False, lambda _: "yes", lambda _: None])
def test_nobody_may_see_it_unless_authorize_returns_true(
    engine: Engine, path: str, authorize: Any
) -> None:
    client = TestClient(dashboard(engine, authorize=authorize))
    response = client.get(path)
    assert response.status_code == 403
    assert "No access" in response.text
    assert "mail" not in response.text


def test_authorize_may_be_async_and_gets_the_request(engine: Engine) -> None:
    async def authorize(request: Request) -> bool:
        return request.headers.get("x-user") == "ada"

    client = TestClient(dashboard(engine, authorize=authorize))
    assert client.get("/jobs/").status_code == 403
    assert client.get("/jobs/", headers={"x-user": "ada"}).status_code == 200


@pytest.mark.parametrize(
    ("client", "host", "status"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080", 200),
        ("::1", "http://[::1]:8080", 200),
        ("127.0.0.1", "http://localhost", 200),
        ("10.0.0.7", "http://127.0.0.1", 403),
        ("127.0.0.1", "http://evil.example", 403),
    ],
)
def test_insecure_local_is_for_this_machine_only(
    engine: Engine, client: str, host: str, status: int
) -> None:
    """Another site may let its own name point to this machine."""
    app = dashboard(engine, insecure_local=True)
    visitor = TestClient(app, base_url=host, client=(client, 5000))
    assert visitor.get("/jobs/").status_code == status


def test_every_page_has_the_headers(engine: Engine, job_id: UUID) -> None:
    visitor = Visitor(engine)
    for path in (*PATHS, f"/jobs/jobs/{job_id}"):
        headers = visitor.client.get(f"{ROOT}{path}", follow_redirects=False).headers
        policy = headers["content-security-policy"]
        assert "unsafe-inline" not in policy
        assert "default-src 'none'" in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
    assert "<script>" not in visitor.get("/jobs/")
    assert 'style="' not in visitor.get("/jobs/")
    assert " onclick" not in visitor.get("/jobs/")


# Changing.


def test_a_forged_request_changes_nothing(engine: Engine, job_id: UUID) -> None:
    visitor = Visitor(engine)
    form = {"action": "cancel", "name": str(job_id)}
    for where in ("confirm", "act"):
        for token in ("", "guessed"):
            visitor.post(where, 403, token=token, **form)
        visitor.post(where, 403, headers={"sec-fetch-site": "cross-site"}, **form)
        visitor.post(where, 403, headers={"sec-fetch-site": "same-site"}, **form)
        visitor.post(where, 403, headers={"origin": "https://evil.example"}, **form)
    fresh = Visitor(engine)  # a browser that has no cookie yet
    fresh.post("act", 403, **{**form, "token": visitor.token()})
    assert is_queued(engine, job_id)
    visitor.post("act", headers={"sec-fetch-site": "same-origin"}, **form)
    assert not is_queued(engine, job_id)


def test_a_get_request_changes_nothing(engine: Engine, job_id: UUID) -> None:
    visitor = Visitor(engine)
    visitor.get(f"/jobs/act?action=cancel&name={job_id}&token={visitor.token()}", 405)
    assert is_queued(engine, job_id)


def test_a_read_only_dashboard_changes_nothing(engine: Engine, job_id: UUID) -> None:
    visitor = Visitor(engine, read_only=True)
    for path in ("/jobs/", "/jobs/jobs", f"/jobs/jobs/{job_id}", "/jobs/recurring"):
        assert 'method="post"' not in visitor.get(path)
    visitor.post("act", 403, action="cancel", name=str(job_id))
    assert is_queued(engine, job_id)


def test_the_way_back_stays_on_this_site(engine: Engine, job_id: UUID) -> None:
    visitor = Visitor(engine)
    for back in (
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
    ):
        form = {"action": "pause", "name": "default", "token": visitor.token(), "back": back}
        response = visitor.client.post(f"{ROOT}/jobs/act", data=form, follow_redirects=False)
        assert response.headers["location"] == f"{ROOT}/jobs/"


def test_forms_that_are_not_complete(engine: Engine) -> None:
    visitor = Visitor(engine)
    visitor.post("confirm", 400, action="explode", name="x")
    visitor.post("confirm", 400, action="cancel")
    visitor.post("confirm", 413, action="cancel", name="x" * 1_100_000)


# What the actions do.


def test_actions_on_jobs(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        ids = [enqueue(session, "mail", n).job_id for n in range(4)]
    visitor = Visitor(engine, actor=lambda _: "ada")
    assert "1 job postponed." in visitor.act("reschedule", ids[0])
    assert "1 job made due." in visitor.act("run-now", ids[0])
    assert "2 jobs cancelled." in visitor.act("cancel", ids[0], ids[1])
    assert "1 job archived as failed." in visitor.act("discard", ids[2])
    with Session(engine) as session:
        assert session.get_one(ArchivedJob, ids[1]).error == "cancelled by ada"
        assert session.get_one(ArchivedJob, ids[2]).error == "discarded by ada"
    assert "1 job enqueued again." in visitor.act("retry", ids[2])
    page = visitor.act("retry", ids[2], ids[1])
    assert "1 job enqueued again. 1 job left as before." in page


def test_all_jobs_that_match_are_retried(engine: Engine) -> None:
    handlers = Handlers()

    @handlers("mail")
    def mail(payload: int) -> None:
        raise ValueError(payload)

    with Session(engine) as session, session.begin():
        enqueue_many(session, [("mail", n) for n in range(700)])
    logging.getLogger("sqlalchemy_proletarian").setLevel(logging.CRITICAL)
    try:
        QueueWorker(engine, handlers).drain()
    finally:
        logging.getLogger("sqlalchemy_proletarian").setLevel(logging.NOTSET)
    visitor = Visitor(engine)
    html = visitor.post("confirm", action="retry", every="1", state="failure", type="mail")
    assert "Retry: 700 jobs?" in html
    assert "700 jobs enqueued again." in visitor.act("retry", every="1", state="failure")
    with Session(engine) as session:
        assert manage.stats(session).queues["default"].due == 700


def test_queues_and_recurring_jobs(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        manage.schedule(session, "nightly", job_type="mail", cron="0 3 * * *")
    visitor = Visitor(engine, actor=lambda _: "ada")
    assert "1 queue paused." in visitor.act("pause", "bulk")
    with Session(engine) as session:
        assert session.get_one(PausedQueue, "bulk").paused_by == "ada"
    assert "1 queue resumed." in visitor.act("resume", "bulk")
    assert "1 recurring job enqueued." in visitor.act("run-recurring", "nightly")
    assert "1 recurring job paused." in visitor.act("pause-recurring", "nightly")
    assert "paused" in visitor.text("/jobs/recurring")
    assert "1 recurring job resumed." in visitor.act("resume-recurring", "nightly")


def test_each_action_is_logged_with_who_did_it(
    engine: Engine, job_id: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Action] = []
    visitor = Visitor(engine, actor=lambda _: "ada", on_action=seen.append)
    with caplog.at_level("INFO", "sqlalchemy_proletarian.dashboard"):
        visitor.act("cancel", job_id)
    assert seen == [Action("cancel", "ada", "Jobs", [str(job_id)], 1)]
    (record,) = [r for r in caplog.records if r.name == "sqlalchemy_proletarian.dashboard"]
    assert record.getMessage() == "cancel: 1 of 1 job, by ada"
    assert record.event == "dashboard-cancel"  # type: ignore[attr-defined]

    def broken(action: Action) -> None:
        raise RuntimeError("no audit log")

    assert "1 queue paused." in Visitor(engine, on_action=broken).act("pause", "default")
