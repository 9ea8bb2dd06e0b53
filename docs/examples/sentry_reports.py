"""Report jobs that have failed to Sentry: one event for each, without its payload."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.scope import use_isolation_scope
from sentry_sdk.transport import Transport
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, RetryStrategy, migrate
from sqlalchemy_proletarian.telemetry import ObservedRun, Observer, add_observer

url = os.environ.get("DATABASE_URL", "postgresql:///postgres")
engine = create_engine(url)
handlers = Handlers()


@handlers.middleware
def sentry_scope(jobs: list[Job]) -> Iterator[None]:
    """Give each job a scope, so that no tag or breadcrumb is left to the next one."""
    with sentry_sdk.isolation_scope() as scope:
        scope.set_tag("job_type", jobs[0].job_type)
        try:
            yield
        except Exception as error:
            error.__dict__["sentry_scope"] = scope  # for the report, if the job is not retried
            raise


class FailedJobs(Observer):
    """Reports each job that has failed, once, when that is committed.

    :param outcomes: add "retried" to report attempts that are retried as well.
    """

    def __init__(self, *outcomes: str) -> None:
        self._outcomes = outcomes or ("failure",)

    def ended(self, runs: Sequence[ObservedRun]) -> None:
        """Report the runs; Sentry groups them by the exception and where it was raised."""
        for run in runs:
            if run.outcome not in self._outcomes or run.error is None:
                continue
            of_job = vars(run.error).get("sentry_scope") or sentry_sdk.get_isolation_scope()
            with use_isolation_scope(of_job), sentry_sdk.new_scope() as scope:
                scope.set_tag("job_type", run.job_type)
                scope.set_tag("queue", run.queue)
                job = {"id": str(run.job_id), "attempt": run.attempt, "outcome": run.outcome}
                scope.set_context("job", job)
                scope.set_level("error" if run.outcome == "failure" else "warning")
                scope.capture_exception(run.error)


def without_duplicates(event: Any, hint: dict[str, Any]) -> Any:
    """Drop the event that Sentry makes of the log's line of a failed job."""
    record = hint.get("log_record")
    return None if getattr(record, "event", None) == "not-retrying" else event


def set_up_sentry(dsn: str | None = None, **options: Any) -> None:
    """Connect to Sentry; call it before the worker starts."""
    sentry_sdk.init(
        dsn,  # by default that of the environment variable SENTRY_DSN
        before_send=without_duplicates,
        include_local_variables=False,  # the payload is one of them
        **options,
    )


@handlers("charge", retry=RetryStrategy(retries=1))
def charge(card: str) -> None:
    """Charge a card: the bank never answers."""
    sentry_sdk.set_tag("bank", "first")
    raise TimeoutError("the bank does not answer")


class Printed(Transport):
    """Prints what would be sent."""

    def capture_envelope(self, envelope: Envelope) -> None:
        """Print an event."""
        event: Any = envelope.get_event()
        if event is not None:
            exception = event["exception"]["values"][-1]
            tags = {name: event["tags"][name] for name in ("job_type", "queue", "bank")}
            print(f"{exception['type']}: {exception['value']} {tags}")
            print(f"attempt {event['contexts']['job']['attempt']}")


def main() -> None:
    """Run a job that fails at both of its attempts."""
    set_up_sentry("https://key@sentry.example/1", transport=Printed)
    add_observer(FailedJobs())
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        charge.enqueue(session, "4111 1111 1111 1111")
    QueueWorker(engine, handlers).drain()


if __name__ == "__main__":
    main()
