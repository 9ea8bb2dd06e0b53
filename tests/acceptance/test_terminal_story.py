"""A person at a terminal: what the pages on the command line describe, in one story."""

from __future__ import annotations

import signal
from pathlib import Path

from sqlalchemy import URL

from .programs import PROLETARIAN, plain
from .terminal import Terminal, on_terminal

JOBS = """
import time
from pathlib import Path

from sqlalchemy_proletarian import Handlers

handlers = Handlers()


@handlers("welcome")
def welcome(payload: dict[str, str]) -> None:
    if payload["email"] == "nobody" and not Path("fixed").exists():
        raise ValueError("no such address")


@handlers("slow")
def slow(payload: float) -> None:
    print("begins", flush=True)
    time.sleep(payload)
    print("ends", flush=True)
"""


def test_a_day_at_a_terminal(empty_database: URL, tmp_path: Path):  # noqa: PLR0915 - a story
    """Start, enqueue, watch, see a failure, show it, retry it, pause, resume, and stop."""
    (tmp_path / "shop_jobs.py").write_text(JOBS)
    variables = {"PROLETARIAN_URL": plain(empty_database), "PYTHONPATH": str(Path.cwd())}

    def start(*arguments: str):
        return on_terminal([*PROLETARIAN, *arguments], cwd=tmp_path, columns=120, **variables)

    def says(*arguments: str, code: int = 0, answer: str = "") -> str:
        with start(*arguments) as terminal:
            if answer:
                terminal.wait_for("[y/N]")
                terminal.write(f"{answer}\n")
            ended = terminal.end()
        assert ended == code, terminal.text
        assert "Traceback" not in terminal.text or arguments[:2] == ("jobs", "show")
        assert max(map(len, terminal.text.splitlines() or [""])) <= 120 or ended
        return terminal.text

    assert "'proletarian migrate upgrade" in says("worker", "shop_jobs:handlers", code=1)
    assert "are at version" in says("migrate", "upgrade")
    with (
        start("worker", "shop_jobs:handlers") as worker,
        start("status", "--watch", "0.2") as watch,
    ):
        worker.wait_for("worker-starting")
        watch.wait_for("No jobs")
        says("enqueue", "welcome", '{"email": "ada@example.com"}')
        worker.wait_for("job-finished success")
        failed = says("enqueue", "welcome", '{"email": "nobody"}').strip()
        worker.wait_for("ValueError: no such address (shop_jobs.py, line 13)")
        worker.wait_for("job-finished failure")
        seen = len(watch.text)
        watch.wait_for("welcome", since=seen)

        assert failed in says("jobs", "list", "--status", "failure")
        shown = says("jobs", "show", failed)
        assert "ValueError: no such address" in shown
        assert '"email": "nobody"' in shown
        (tmp_path / "fixed").touch()
        new = says("jobs", "retry", "--type", "welcome", "--newer-than", "1h", answer="y")
        assert "1 retried" in new
        finished = worker.text.count("job-finished")
        _until(worker, "job-finished", finished + 1)
        assert "retried" in says("jobs", "list", "--status", "failure")
        assert "retried before" in says("jobs", "retry", failed, code=4)

        assert "is paused" in says("queues", "pause", "default", "--reason", "lunch")
        worker.wait_for("queue-paused queue=default")
        waiting = says("enqueue", "slow", "2").strip()
        watch.wait_for("lunch")
        assert "due" in says("jobs", "show", waiting)
        assert "begins" not in worker.text
        assert "is resumed" in says("queues", "resume", "default")
        worker.wait_for("begins")
        watch.wait_for("Running")
        assert "Worker" in says("jobs", "show", waiting)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end(10) == 0, worker.text
        assert "ends" in worker.text
        assert "worker-stopped" in worker.text
        assert "Traceback" not in worker.text
        watch.interrupt()
        assert watch.end() == 0
    assert "success" in says("jobs", "show", waiting)


def _until(terminal: Terminal, words: str, times: int) -> None:
    """Wait until words were written so many times."""
    position = -1
    for _ in range(times):
        terminal.wait_for(words, since=position + 1)
        position = terminal.text.index(words, position + 1)
