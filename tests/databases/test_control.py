"""The functions of ``manage`` on every database."""

from __future__ import annotations

from datetime import timedelta
from time import sleep
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import PausedQueue, manage
from tests.integration.support import archived, eventually, put, queued, rows, succeed

from .places import Place


def committed(engine: Engine, function: Any, *args: Any, **options: Any) -> Any:
    """Call a function of ``manage`` in a transaction of its own."""
    with Session(engine) as session, session.begin():
        return function(session, *args, **options)


def test_pause_and_resume(place: Place, engine: Engine) -> None:
    """A worker sees within a second that a queue is paused and resumed, however rarely it polls."""
    assert committed(engine, manage.pause, "default", reason="Grüße 😀", paused_by="Ada")
    assert not committed(engine, manage.pause, "default")
    assert committed(engine, manage.pause, "DEFAULT")
    (first, second) = sorted(rows(engine, PausedQueue), key=lambda row: row.queue)
    assert (first.queue, second.queue, second.reason) == ("DEFAULT", "default", "Grüße 😀")
    put(engine, "job")
    with place.worker(engine, succeed, polling_interval=timedelta(minutes=1)):
        sleep(0.3)
        assert len(queued(engine)) == 1
        assert committed(engine, manage.resume, "default")
        eventually(lambda: len(archived(engine)) == 1)
        assert committed(engine, manage.pause, "default")
        sleep(1)
        put(engine, "job")
        sleep(0.5)
        assert len(queued(engine)) == 1
    assert not committed(engine, manage.resume, "other")
