"""The dashboard in a real browser: what a person does with it, and what a visitor must not.

It writes the screenshots of the documentation if ``PROLETARIAN_SCREENSHOTS`` names a folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import uvicorn
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    PausedQueue,
    QueueWorker,
    enqueue,
    enqueue_many,
    manage,
)
from sqlalchemy_proletarian.dashboard import dashboard

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# In CI it must be there: without a path, Playwright says that it finds none.
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="there is no Chromium"
)

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


class Mail:
    """Handlers that fail until the mail server answers."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.end = threading.Event()
        self.handlers = Handlers()

        @self.handlers("send-email")
        def send_email(payload: dict[str, Any]) -> None:
            if not self.answers.is_set() and payload["n"] % 10 == 0:
                msg = f"smtp.example.com did not answer within {payload['n']} s"
                raise TimeoutError(msg)

        @self.handlers("report")
        def report(payload: Any) -> None:
            self.end.wait(60)


@contextmanager
def served(engine: Engine, **options: Any) -> Generator[str]:
    """Serve a dashboard, and yield its address."""
    config = uvicorn.Config(dashboard(engine, **options), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Window:
    """A window of the browser, and what its console said."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        options.setdefault("viewport", {"width": 1200, "height": 800})
        self.context = browser.new_context(base_url=address, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def go(self, path: str) -> Any:
        self.page.goto(path)
        return self.page

    def text(self) -> str:
        return str(self.page.inner_text("main"))

    def shoot(self, name: str) -> None:
        if folder := os.environ.get("PROLETARIAN_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.fixture
def mail(engine: Engine) -> Iterator[Mail]:
    """A worker, failed jobs, and a paused queue."""
    mail = Mail()
    with Session(engine) as session, session.begin():
        emails = [("send-email", {"n": n, "to": "ada@example.com"}) for n in range(60)]
        enqueue_many(session, emails, queue="mail")
        enqueue(session, "report", {"year": 2026})
        enqueue(session, "send-email", {"n": 1}, queue="mail", process_in=timedelta(hours=2))
        enqueue(session, "import", {"file": HOSTILE}, queue="bulk")
        manage.pause(session, "bulk", reason="maintenance", paused_by="ada")
        manage.schedule(session, "nightly-report", job_type="report", cron="0 3 * * *")
    worker = QueueWorker(
        engine, mail.handlers, queues=["mail", "default", "bulk"], threads=2, name="worker-1"
    )
    with worker:
        until(lambda: len(failed(engine)) == 6)
        yield mail
        mail.end.set()


def failed(engine: Engine) -> list[ArchivedJob]:
    with Session(engine) as session:
        return list(session.query(ArchivedJob).filter_by(status="failure"))


def until(condition: Any) -> None:
    end = monotonic() + 20
    while not condition():
        assert monotonic() < end
        sleep(0.05)


def test_a_failed_job_is_found_retried_and_seen_to_succeed(
    engine: Engine, chromium: Any, mail: Mail
) -> None:
    with served(engine, insecure_local=True) as address:
        window = Window(chromium, address)
        page = window.go("/")
        assert "send-email fails: 6 of 60 jobs in the last 5 min." in window.text()
        window.shoot("overview")
        page.click("text=Show the jobs")
        page.click("tbody tr:first-child a.id")
        assert "TimeoutError: smtp.example.com did not answer" in window.text()
        page.click("summary")
        assert "Traceback (most recent call last)" in window.text()
        window.shoot("job")
        mail.answers.set()
        page.click("button:text-is('Retry')")
        assert "Retry: 1 job?" in window.text()
        page.click("button:text-is('Retry 1 job')")
        assert "1 job enqueued again." in window.text()
        page.goto("/jobs/failures")
        assert page.inner_text("tbody tr td.n") == "5"
        window.shoot("failures")
        page.click("text=Retry 5")
        page.click("button:text-is('Retry 5 jobs')")
        assert "5 jobs enqueued again." in window.text()
        assert "No failures." in window.text()
        page.goto("/jobs/jobs?state=success&newer=1h")
        until(lambda: page.reload() and len(page.query_selector_all("tbody tr")) == 50)
        assert window.said == []


def test_a_queue_is_paused_and_resumed(engine: Engine, chromium: Any, mail: Mail) -> None:
    with served(engine, insecure_local=True) as address:
        window = Window(chromium, address)
        page = window.go("/")
        page.click("tr:has-text('mail') >> button:text-is('Pause')")
        page.click("button:text-is('Pause 1 queue')")
        assert "1 queue paused." in window.text()
        with Session(engine) as session:
            assert session.get(PausedQueue, "mail") is not None
        page.click("tr:has(th:has-text('mail')) >> button:text-is('Resume')")
        page.click("button:text-is('Resume 1 queue')")
        with Session(engine) as session:
            assert session.get(PausedQueue, "mail") is None


def test_hostile_texts_do_nothing(engine: Engine, chromium: Any, mail: Mail) -> None:
    with Session(engine) as session, session.begin():
        job_id = enqueue(session, HOSTILE, HOSTILE, queue="bulk").job_id
    with served(engine, insecure_local=True) as address:
        window = Window(chromium, address)
        for path in (
            "/",
            "/jobs/jobs?queue=bulk",
            f"/jobs/jobs/{job_id}",
            f"/jobs/jobs?text={HOSTILE}",
        ):
            page = window.go(f"/jobs/{path}")
            page.wait_for_timeout(100)
            assert page.title() != "hacked"
            assert page.query_selector("main img") is None
        assert not [line for line in window.said if "Failed to load" not in line]


def test_visitors_that_are_refused(engine: Engine, chromium: Any, mail: Mail) -> None:
    """One who is not authorized, and a form on another site."""
    with served(engine) as address:
        page = Window(chromium, address).go("/jobs/")
        assert "No access" in page.inner_text("main")
    job = failed(engine)[0].job_id
    with served(engine, insecure_local=True) as address:
        window = Window(chromium, address)
        window.go("/jobs/")  # now the browser has the cookie
        other = window.context.new_page()
        other.set_content(
            f'<form method="post" action="{address}/jobs/act"><input name="name" value="{job}">'
            f'<button name="action" value="retry">Win a prize</button></form>'
        )
        other.click("button")
        other.wait_for_load_state()
        assert "The form is not one of this site" in other.inner_text("main")
    with Session(engine) as session:
        assert session.get_one(ArchivedJob, job).retried_at is None


def test_the_page_changes_by_itself_and_keys_work(
    engine: Engine, chromium: Any, mail: Mail
) -> None:
    with served(engine, insecure_local=True) as address:
        window = Window(chromium, address)
        page = window.go("/")
        with Session(engine) as session, session.begin():
            enqueue_many(session, [("other", n) for n in range(1234)], queue="new-queue")
        page.wait_for_selector("text=new-queue")
        assert "1,234" in window.text()
        page.goto("/jobs/jobs?state=failure")
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        page.keyboard.press("x")
        assert page.is_checked("tbody tr:first-child input")
        page.keyboard.press("?")
        assert page.is_visible("dialog")
        page.keyboard.press("Escape")
        page.keyboard.press("/")
        page.keyboard.type("within 30 s")
        page.keyboard.press("Enter")
        page.wait_for_url("**/jobs/jobs?text=within*")
        page.wait_for_load_state()
        assert page.locator("tbody tr").count() == 1
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_selector("h1:has-text('send-email')")
        assert window.said == []


def test_times_are_in_the_zone_of_the_viewer(engine: Engine, chromium: Any, mail: Mail) -> None:
    job = failed(engine)[0]
    with served(engine, insecure_local=True) as address:
        window = Window(chromium, address, timezone_id="Asia/Tokyo", locale="en-GB")
        page = window.go(f"/jobs/jobs/{job.job_id}")
        shown = page.query_selector(".life time")
        assert shown.get_attribute("title").endswith("UTC")
        hour = (job.enqueued_at.hour + 9) % 24
        assert f"{hour:02}:" in shown.inner_text()


def test_without_javascript(engine: Engine, chromium: Any, mail: Mail) -> None:
    with served(engine, insecure_local=True) as address:
        window = Window(chromium, address, java_script_enabled=False)
        page = window.go("/jobs/jobs?state=failure")
        page.check("tbody tr:first-child input")
        page.click("p.actions button:text-is('Retry')")
        page.click("button:text-is('Retry 1 job')")
        assert "1 job enqueued again." in window.text()
        page.goto("/")
        assert "UTC" in window.text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_there_are_no_barriers(
    engine: Engine, chromium: Any, mail: Mail, scheme: str, width: int
) -> None:
    """By the rules of axe for WCAG 2.1 AA; and no page is wider than the window."""
    axe = Axe()
    job = failed(engine)[0].job_id
    with served(engine, insecure_local=True) as address:
        viewport = {"width": width, "height": 800}
        window = Window(chromium, address, color_scheme=scheme, viewport=viewport)
        for path in (
            "/",
            "/jobs/jobs",
            "/jobs/jobs?state=failure",
            "/jobs/failures",
            "/jobs/recurring",
            f"/jobs/jobs/{job}",
            "/jobs/jobs/none",
        ):
            page = window.go(path)
            found = axe.run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]})
            assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        if scheme == "dark" or width < 1000:
            window.go("/")
            window.shoot(f"overview-{scheme}" if width > 1000 else f"phone-{scheme}")
