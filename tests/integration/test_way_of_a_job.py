"""How many modules one job passes through: few enough to follow by reading."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine

import sqlalchemy_proletarian
from sqlalchemy_proletarian import Handlers, QueueWorker
from sqlalchemy_proletarian.execution.lease.runner import LeaseRunner
from sqlalchemy_proletarian.execution.runner import Runner
from sqlalchemy_proletarian.execution.transaction.runner import TransactionRunner
from sqlalchemy_proletarian.store import claim_filter

from .support import put

PACKAGE = Path(sqlalchemy_proletarian.__file__).parent


@contextmanager
def called(modules: set[str]) -> Iterator[None]:
    """Collect the modules of the package whose functions are called, in all threads."""

    def profile(frame: FrameType, event: str, _arg: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            modules.add(path.relative_to(PACKAGE).as_posix())

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # as the documentation says


@pytest.mark.parametrize(
    ("runner", "options", "most"),
    [
        (TransactionRunner, {"batch_size": 1}, 13),
        (LeaseRunner, {"lease": timedelta(minutes=1)}, 16),
    ],
)
def test_a_job_passes_through_few_modules(  # noqa: PLR0917 - fixtures
    engine: Engine,
    url: URL,
    monkeypatch: pytest.MonkeyPatch,
    runner: type[Runner],
    options: dict[str, Any],
    most: int,
) -> None:
    """From the claim to the archive, including the loop that polls."""
    handlers = Handlers()
    handlers("add")(lambda payload: None)
    modules = {"worker/loop.py"}
    polls: list[bool] = []
    poll = runner.poll

    def profiled_poll(self: Runner, connection: Any) -> bool:
        polls.append(True)
        if len(polls) == 1:  # the first job opens the connection for markers
            return poll(self, connection)
        with called(modules):
            return poll(self, connection)

    monkeypatch.setattr(claim_filter, "SLOW", 60.0)  # machines under load are slow
    own_engine = create_engine(url)  # one on which nothing is enqueued
    for each in (poll, profiled_poll):  # an earlier worker compiles the statements
        for _ in range(2):
            put(engine, "add", {"a": 1})
        monkeypatch.setattr(runner, "poll", each)
        assert QueueWorker(own_engine, handlers, notify=False, **options).drain() == 2
    own_engine.dispose()
    assert len(modules) <= most, "\n".join(sorted(modules))
