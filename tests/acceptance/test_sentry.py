"""What Sentry receives by the recipe in docs/howto/logging.md, with the real SDK and no network."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from sqlalchemy import URL

from sqlalchemy_proletarian import migrate

from .programs import EXAMPLES, run

PROGRAM = """
import json
import sys
from datetime import timedelta

import sentry_sdk
from sentry_sdk.transport import Transport
from sentry_sdk.utils import json_dumps
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import sentry_reports
from sentry_reports import handlers, url
from sqlalchemy_proletarian import Handlers, QueueWorker, RetryStrategy, enqueue
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.telemetry import add_observer

sent = []


class Collected(Transport):
    def capture_envelope(self, envelope):
        sent.append(envelope.get_event())


@handlers("hush")
def hush(payload):
    raise ValueError("no luck")


@handlers("ask")
def ask(payload):
    sentry_sdk.capture_message("a question")


coroutines = Handlers()
coroutines.middleware(sentry_reports.sentry_scope)


@coroutines("charge", retry=RetryStrategy(retries=1))
async def charge(card):
    sentry_sdk.set_tag("bank", "first")
    raise TimeoutError("the bank does not answer")


coroutines("hush")(hush.function)
coroutines("ask")(ask.function)

sentry_reports.set_up_sentry("https://key@sentry.example/1", transport=Collected)
add_observer(sentry_reports.FailedJobs(*sys.argv[1].split(",")))
engine = create_engine(url)
options = {"lease": timedelta(seconds=30)} if sys.argv[3] == "lease" else {}
with Session(engine) as session, session.begin():
    for job_type in ("charge", "hush", "ask"):
        enqueue(session, job_type, "4111 1111", headers={"request": "r-1"})
if sys.argv[2] == "asyncio":
    import asyncio

    async def main():
        asynchronous = create_async_engine(url)
        await AsyncQueueWorker(asynchronous, coroutines, **options).drain()
        await asynchronous.dispose()

    asyncio.run(main())
else:
    QueueWorker(engine, handlers, **options).drain()
print(json_dumps(sent).decode())
"""


def sent(url: URL, outcomes: str, kind: str, held: str) -> list[dict[str, Any]]:
    """Run the program, and return the events that it has sent."""
    migrate.upgrade(url)
    arguments = [sys.executable, "-c", PROGRAM, outcomes, kind, held]
    done = run(arguments, url=url, PYTHONPATH=str(EXAMPLES))
    assert done.returncode == 0, done.stderr
    assert "4111 1111" not in done.stdout, "the payload was sent"
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
@pytest.mark.parametrize("held", ["transaction", "lease"])
def test_one_event_for_each_failed_job(empty_database: URL, kind: str, held: str):
    """With the job's type, id and attempt, and the tags of its own handler; retries are none."""
    events = {
        event["tags"]["job_type"]: event for event in sent(empty_database, "failure", kind, held)
    }
    assert sorted(events) == ["ask", "charge", "hush"]
    charge, hush, ask = events["charge"], events["hush"], events["ask"]
    (exception,) = charge["exception"]["values"]
    assert (exception["type"], exception["value"]) == ("TimeoutError", "the bank does not answer")
    assert exception["stacktrace"]["frames"][-1]["function"] == "charge"
    assert charge["level"] == "error"
    assert charge["tags"]["queue"] == "default"
    assert charge["contexts"]["job"]["attempt"] == 2
    assert len(charge["contexts"]["job"]["id"]) == 36
    assert charge["tags"]["bank"] == "first"
    assert "bank" not in hush["tags"] | ask["tags"], "a tag of another job"
    assert "logger" not in charge and "logger" not in hush
    assert ask["message"] == "a question"


def test_retried_attempts_are_reported_on_request(empty_database: URL):
    events = sent(empty_database, "failure,retried", "threads", "transaction")
    charges = [event for event in events if event["tags"]["job_type"] == "charge"]
    assert [event["level"] for event in charges] == ["warning", "error"]
    assert [event["contexts"]["job"]["attempt"] for event in charges] == [1, 2]
