"""Observers: what they see of jobs, and that their errors do no harm."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from time import sleep
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Discard,
    Handlers,
    JobCancelledError,
    QueueWorker,
    Snooze,
    enqueue,
    enqueue_many,
    process_next_job,
)
from sqlalchemy_proletarian.telemetry import ObservedRun, Observer, add_observer, remove_observer

from .kinds import Kind
from .support import Log, archived, put, queued


class Recorder(Observer):
    """Keeps what it is told, and writes a header."""

    def __init__(self) -> None:
        self.around_runs: list[tuple[list[Any], BaseException | None]] = []
        self.runs: list[ObservedRun] = []

    def enqueuing(
        self, job_type: str, queue: str, headers: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        return {**(headers or {}), "seen": f"{queue}/{job_type}"}

    @contextmanager
    def around(self, runs: Sequence[ObservedRun]) -> Generator[None]:
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            self.around_runs.append(([run.job_id for run in runs], raised))

    def ended(self, runs: Sequence[ObservedRun]) -> None:
        self.runs += runs


@pytest.fixture
def recorder() -> Generator[Recorder]:
    recorder = Recorder()
    add_observer(recorder)
    yield recorder
    remove_observer(recorder)


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}], ids=["shared", "single"])
def test_an_observer_sees_every_run_and_its_outcome(
    engine: Engine, kind: Kind, recorder: Recorder, options: dict[str, Any]
) -> None:
    """Times are those of the run, and the error is that of the attempt."""

    def handler(job_type: str, payload: Any) -> None:
        sleep(0.02)
        if job_type == "discard":
            raise Discard("no use")
        if job_type == "cancel":
            raise JobCancelledError
        if job_type == "retry":
            raise ValueError("not today")

    ids = {name: put(engine, name) for name in ("succeed", "discard", "cancel", "retry")}
    sleep(0.05)
    kind.run_all(engine, handler, retry_strategy={"retries": 1}, **options)

    seen = sorted((run.job_type, run.attempt, run.outcome) for run in recorder.runs)
    assert seen == [
        ("cancel", 1, "cancelled"),
        ("discard", 1, "failure"),
        ("retry", 1, "retried"),
        ("retry", 2, "failure"),
        ("succeed", 1, "success"),
    ]
    for run in recorder.runs:
        assert run.job_id == ids[run.job_type]
        assert run.queue == "default"
        assert run.headers == {"seen": f"default/{run.job_type}"}
        assert run.wait is not None
        assert run.duration is not None
        assert 0.02 <= run.duration < 10
        assert run.wait >= (0.05 if run.attempt == 1 else 0)
        assert (run.error is None) is (run.outcome == "success")
    raised = {ids["succeed"]: None, ids["discard"]: Discard, ids["retry"]: ValueError}
    around = {ids[0]: error for ids, error in recorder.around_runs}
    for job_id, error in raised.items():
        assert around[job_id] is None if error is None else isinstance(around[job_id], error)


def test_a_snoozed_job_has_ended_one_run(engine: Engine, kind: Kind, recorder: Recorder) -> None:
    def handler(job_type: str, payload: Any) -> None:
        raise Snooze(timedelta(hours=1))

    put(engine, "later")
    kind.run_all(engine, handler)
    assert [run.outcome for run in recorder.runs] == ["snoozed"]


def test_a_call_of_a_batch_handler_is_one_block_around_all_its_runs(
    engine: Engine, kind: Kind, recorder: Recorder
) -> None:
    handlers = Handlers()

    @handlers.batch("index", size=10)
    def index(payloads: list[Any]) -> None:
        pass

    for _ in range(4):
        put(engine, "index")
    kind.run_all(engine, handlers)
    assert sum(len(ids) for ids, _ in recorder.around_runs) == 4
    assert len(recorder.around_runs) < 4
    assert len({run.job_id for run in recorder.runs}) == 4


class Faulty(Observer):
    """Raises wherever it can."""

    def __init__(self, where: str) -> None:
        self.where = where

    def enqueuing(self, *_: Any) -> Any:
        if self.where == "enqueuing":
            raise RuntimeError("faulty")

    def enqueued(self, *_: Any) -> None:
        if self.where == "enqueued":
            raise RuntimeError("faulty")

    @contextmanager
    def around(self, runs: Sequence[ObservedRun]) -> Generator[None]:  # noqa: ARG002
        if self.where == "before":
            raise RuntimeError("faulty")
        yield
        if self.where == "after":
            raise RuntimeError("faulty")

    def ended(self, runs: Sequence[ObservedRun]) -> None:  # noqa: ARG002
        if self.where == "ended":
            raise RuntimeError("faulty")


@pytest.mark.parametrize("where", ["enqueuing", "enqueued", "before", "after", "ended"])
def test_an_error_of_an_observer_is_reported_and_has_no_other_effect(
    engine: Engine, kind: Kind, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()
    observer = Faulty(where)
    add_observer(observer)
    try:
        put(engine, "mail")
        kind.run_all(engine, lambda job_type, payload: None, log=log)
    finally:
        remove_observer(observer)
    assert [job.status for job in archived(engine)] == ["success"]
    assert queued(engine) == []
    assert "faulty" in caplog.text
    assert ("observer-error" in log.events()) is (not where.startswith("enqueu"))


def test_enqueue_many_takes_the_headers_of_an_observer(engine: Engine, recorder: Recorder) -> None:
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("mail", 1), {"job_type": "sms", "headers": {"tenant": "a"}}])
    assert {job.job_type: job.headers for job in queued(engine)} == {
        "mail": {"seen": "default/mail"},
        "sms": {"tenant": "a", "seen": "default/sms"},
    }


def test_process_next_job_is_observed(engine: Engine, recorder: Recorder) -> None:
    put(engine, "mail")
    with Session(engine) as session:
        assert process_next_job(session, lambda job_type, payload: None)
    (run,) = recorder.runs
    assert (run.outcome, run.queue) == ("success", "default")
    assert run.duration is not None


def test_only_an_observer_can_be_added() -> None:
    with pytest.raises(TypeError, match="subclass of Observer"):
        add_observer(print)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has not been added"):
        remove_observer(Observer())


def test_runs_are_measured_for_the_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """One line at INFO for each job, however it ended, and never the payload."""
    handlers = Handlers()
    handlers("mail")(lambda payload: sleep(0.01))
    with Session(engine) as session, session.begin():
        job = enqueue(session, "mail", "secret")
    with caplog.at_level("INFO", "sqlalchemy_proletarian"):
        QueueWorker(engine, handlers).drain()
    (line,) = [record for record in caplog.records if hasattr(record, "job_id")]
    assert line.event == "job-finished"  # type: ignore[attr-defined]
    assert line.job_id == job.job_id  # type: ignore[attr-defined]
    assert line.duration >= 0.01  # type: ignore[attr-defined]
    assert line.wait >= 0  # type: ignore[attr-defined]
    assert "outcome=success" in line.getMessage()
    assert "secret" not in caplog.text
