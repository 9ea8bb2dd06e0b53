"""A worker that is killed in the middle of a job, on databases other than PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers
from tests.integration.support import archived, eventually, only_archived, put

from .conftest import engine_of
from .places import Note, Place, only
from .test_life import notes

LEASE = timedelta(seconds=3)
"""How long the jobs of a killed worker wait in lease mode."""


def main(server: str, driver: str, url: str, leased: str, begun: str) -> None:
    """Run a job that writes and never ends, in a separate process."""
    from sqlalchemy import make_url

    place = Place(server, driver, leased=leased == "True")
    engine = engine_of(place, make_url(url))
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="once"))
        session.flush()
        Path(begun).touch()
        sleep(600)

    options = {"lease": LEASE} if place.leased else {}
    place.worker(engine, handlers, **options).run()  # type: ignore[union-attr]


@only(lambda place: (place.is_mysql or place.server == "sqlite") and not place.in_a_loop)
def test_the_job_of_a_killed_worker_runs_again(
    place: Place, engine: Engine, tmp_path: Path
) -> None:
    """The writes of a killed worker roll back, and its job takes effect once on another worker."""
    put(engine, "write")
    begun = tmp_path / "begun"
    url = engine.url.render_as_string(hide_password=False)
    arguments = [place.server, place.driver, url, str(place.leased), str(begun)]
    with subprocess.Popen([sys.executable, "-m", __name__, *arguments]) as process:
        try:
            eventually(begun.exists)
        finally:
            process.kill()
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="once"))

    interval = timedelta(seconds=0.2)
    with place.worker(engine, handlers, polling_interval=interval):
        eventually(lambda: archived(engine))
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("success", 1)
    assert notes(engine) == ["once"]


if __name__ == "__main__":
    main(*sys.argv[1:])
