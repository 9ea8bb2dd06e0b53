"""What is logged about single jobs: one line for each that has ended, and never its payload."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, text

from sqlalchemy_proletarian import Discard, Handlers, Snooze
from sqlalchemy_proletarian.telemetry.words import short

from .kinds import Kind
from .support import archived, put
from .test_refusals import rejecting_archive

SECRET = "s3cret-card"  # noqa: S105


class Colour(Enum):
    """Two members, neither of which is in the payload."""

    RED = "red"


@dataclass
class Card:
    """A payload for msgspec."""

    number: int


@dataclass
class Paint:
    """A payload whose error of msgspec has the value."""

    colour: Colour


class Model(BaseModel):
    """A payload whose error of pydantic has the value."""

    number: int


def shop_handlers() -> Handlers:
    """Return handlers for each end of a job; none of their errors has the payload."""
    handlers = Handlers()

    @handlers("fine")
    def fine(payload: Any) -> None: ...

    @handlers("broken", retry={"retries": 1})
    def broken(payload: Any) -> None:
        raise ValueError("no luck")

    @handlers("snoozed")
    def snoozed(payload: Any) -> None:
        raise Snooze(timedelta(days=1))

    @handlers("discarded")
    def discarded(payload: Any) -> None:
        raise Discard("no")

    @handlers("card")
    def card(payload: Card) -> None: ...

    @handlers("paint")
    def paint(payload: Paint) -> None: ...

    @handlers("model")
    def model(payload: Model) -> None: ...

    @handlers.batch("many", size=3)
    def many(payloads: list[Any]) -> None: ...

    return handlers


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Return everything that is in the log records: messages, attributes and tracebacks."""
    form = logging.Formatter()
    return "\n".join(f"{form.format(record)} {vars(record)}" for record in caplog.records)


def test_one_line_at_info_for_each_job_that_has_ended(
    engine: Engine, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """All else about single jobs has other levels; no record contains a payload."""
    for job_type in ("fine", "broken", "snoozed", "discarded", "card", "paint", "model"):
        put(engine, job_type, {"number": SECRET, "colour": SECRET})
    for _ in range(3):
        put(engine, "many", SECRET)
    with engine.begin() as connection:
        broken_text = "UPDATE proletarian.job SET payload = :text WHERE job_type = 'fine'"
        connection.execute(text(broken_text), {"text": f"{SECRET}"})
    put(engine, "fine", SECRET)
    with caplog.at_level(logging.DEBUG, "sqlalchemy_proletarian"):
        kind.run_all(engine, shop_handlers())
    records: list[Any] = [r for r in caplog.records if hasattr(r, "job_id")]
    at_info = [r for r in records if r.levelno == logging.INFO]
    assert {record.event for record in at_info} == {"job-finished"}
    assert Counter(r.job_id for r in at_info) == Counter(job.job_id for job in archived(engine))
    assert Counter((r.job_type, r.outcome) for r in at_info) == {
        ("fine", "success"): 1,
        ("fine", "failure"): 1,  # its text is no JSON
        **{(failed, "failure"): 1 for failed in ("broken", "discarded", "card", "paint", "model")},
        ("many", "success"): 3,
    }
    assert all(isinstance(r.wait, float) and r.attempt >= 1 for r in at_info)
    assert all(f"duration={short(r.duration)}" in r.getMessage() for r in at_info)
    assert len([r for r in records if r.event == "retrying"]) == 1
    assert "does not fit Paint: Invalid enum value" in logged(caplog)
    assert "does not fit Model: number: Input should be a valid integer" in logged(caplog)
    assert "is not JSON" in logged(caplog)
    assert SECRET not in logged(caplog)


def test_the_refusal_of_the_archive_is_logged_without_the_row(
    engine: Engine, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL's error has the whole row, with the payload: only its first line is logged."""
    put(engine, "discarded", SECRET)
    with rejecting_archive(engine, "false"):
        kind.run_all(engine, shop_handlers())
    (record,) = [r for r in caplog.records if getattr(r, "event", "") == "archive-refused"]
    assert 'violates check constraint "strict"' in logging.Formatter().format(record)
    assert SECRET not in logged(caplog)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.0, "0.0ms"), (0.00042, "0.4ms"), (0.00999, "10ms"), (0.0123, "12ms")),
        *((0.9994, "999ms"), (0.9996, "1.0s"), (1.52, "1.5s"), (99.94, "99.9s"), (99.96, "1m40s")),
        *((125, "2m05s"), (3599.6, "1h00m"), (5400, "1h30m"), (360000, "100h00m")),
    ],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert short(seconds) == words
