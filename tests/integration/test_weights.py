"""Queues that share a worker by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from threading import Lock
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, enqueue_many, manage
from sqlalchemy_proletarian.testing import drain

from .kinds import Kind, inner
from .support import SECOND, eventually, put, queued, succeed
from .test_process_next_job import RunNext, run_next  # noqa: F401 - the fixture

WEIGHTS = {"critical": 5, "bulk": 1}
JOBS = 400


def fill(engine: Engine, **jobs: int) -> None:
    """Enqueue so many jobs in queues; the payload is the name of the queue."""
    with Session(engine) as session, session.begin():
        for queue, number in jobs.items():
            enqueue_many(session, [("job", queue)] * number, queue=queue)


class Runs:
    """Handlers that note the queues of their jobs, and stop the workers after some of them."""

    def __init__(self, most: int) -> None:
        self.seen: list[str] = []
        self.workers: list[Any] = []
        self.handlers = Handlers()
        self._lock = Lock()

        @self.handlers("job")
        def job(payload: str) -> None:
            with self._lock:
                self.seen.append(payload)
                if len(self.seen) == most:
                    for worker in self.workers:
                        worker.request_stop()

    def counts(self) -> Counter[str]:
        return Counter(self.seen)

    def run(self, kind: Kind, engine: Engine, **options: Any) -> Counter[str]:
        """Run jobs with one worker until enough of them have run."""
        options.setdefault("queues", WEIGHTS)
        self.workers = [kind.worker(engine, self.handlers, **options)]
        self.workers[0].drain()
        return self.counts()


@pytest.mark.parametrize("batch_size", [1, 10])
def test_started_jobs_are_in_the_ratio_of_the_weights(
    engine: Engine, kind: Kind, batch_size: int
) -> None:
    """While both queues have jobs, five jobs of one run for each job of the other."""
    fill(engine, critical=JOBS, bulk=JOBS)
    counts = Runs(240).run(kind, engine, batch_size=batch_size)
    assert 240 <= counts.total() <= 250
    assert 200 - 25 <= counts["critical"] <= 200 + 25, counts


def test_threads_share_the_ratio(engine: Engine, kind: Kind) -> None:
    """Several threads, or tasks, of a worker share its queues."""
    fill(engine, critical=JOBS, bulk=JOBS)
    counts = Runs(240).run(kind, engine, threads=4, batch_size=5)
    assert 240 <= counts.total() <= 265
    assert 0.7 < counts["critical"] / counts.total() < 0.93, counts


def test_two_workers_share_by_weight(engine: Engine, kind: Kind) -> None:
    """Each worker shares out its own capacity, so together they do, too."""
    fill(engine, critical=JOBS, bulk=JOBS)
    runs = Runs(240)
    for _ in range(2):
        worker = kind.worker(
            engine, runs.handlers, queues=WEIGHTS, batch_size=5, polling_interval=SECOND
        )
        runs.workers.append(worker)
    for worker in runs.workers:
        worker.start()
    eventually(lambda: len(runs.seen) >= 240)
    for worker in runs.workers:
        worker.stop()
    assert 0.7 < runs.counts()["critical"] / len(runs.seen) < 0.93, runs.counts()


@pytest.mark.parametrize("empty", ["critical", "bulk"])
def test_no_capacity_is_left_unused(engine: Engine, kind: Kind, empty: str) -> None:
    """If one queue is empty, the worker runs the jobs of the other without waiting."""
    other = "bulk" if empty == "critical" else "critical"
    fill(engine, **{other: 50})
    assert Runs(1000).run(kind, engine) == {other: 50}
    assert queued(engine) == []


def test_all_jobs_run(engine: Engine, kind: Kind) -> None:
    """Within a queue, priorities decide; queues without weights are left alone."""
    for priority in (7, 2, 5):
        put(engine, "job", priority, queue="bulk", priority=priority)
        put(engine, "job", priority, queue="critical", priority=priority)
    put(engine, "job", queue="other")
    seen: list[Any] = []
    handlers = Handlers()

    @handlers("job")
    def job(payload: int, job: Job) -> None:
        seen.append((job.queue, payload))

    kind.run_all(engine, handlers, queues=WEIGHTS)
    for queue in WEIGHTS:
        assert [priority for name, priority in seen if name == queue] == [2, 5, 7]
    assert [job.queue for job in queued(engine)] == ["other"]


def test_a_paused_queue_is_skipped(engine: Engine, kind: Kind) -> None:
    fill(engine, critical=20, bulk=20)
    with Session(engine) as session, session.begin():
        manage.pause(session, "critical")
    assert Runs(1000).run(kind, engine) == {"bulk": 20}
    with Session(engine) as session, session.begin():
        manage.resume(session, "critical")
    assert Runs(1000).run(kind, engine) == {"critical": 20}


def test_jobs_of_unknown_types_take_no_turns(engine: Engine, kind: Kind) -> None:
    """A queue that has only jobs of types without a handler is like an empty one."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("unknown", None)] * 20, queue="critical")
    fill(engine, bulk=20)
    assert Runs(1000).run(kind, engine) == {"bulk": 20}


def test_the_order_of_queues_is_a_parameter(engine: Engine, kind: Kind) -> None:
    """Claims in different orders have one text, which is compiled and prepared once."""
    weights = {"critical": 3, "bulk": 1, "default": 2}
    fill(engine, **dict.fromkeys(weights, 100))
    runs = Runs(150)
    worker = kind.worker(engine, runs.handlers, queues=weights, batch_size=1)
    runs.workers = [worker]
    texts: set[str] = set()

    @event.listens_for(inner(worker, engine), "before_cursor_execute")
    def executing(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "LATERAL" in statement and "FOR UPDATE" in statement:
            texts.add(statement)

    worker.drain()
    assert set(runs.counts()) == set(weights)
    assert len(texts) <= 1


def test_process_next_job_shares_by_weight(session: Session, run_next: RunNext) -> None:  # noqa: F811
    """Each call chooses a queue at random, by weight, so that none starves."""
    seen: list[str] = []
    weights = {"critical": 2, "bulk": 1}
    enqueue_many(session, [("job", "critical")] * 40, queue="critical")
    enqueue_many(session, [("job", "bulk")] * 40, queue="bulk")
    session.commit()
    for _ in range(30):
        assert run_next(session, lambda _, queue: seen.append(queue), queues=weights) is True
    counts = Counter(seen)
    assert counts["critical"] + counts["bulk"] == 30
    # 30 coins of 1/3: outside of these limits once in 100,000 runs.
    assert 1 <= counts["bulk"] <= 23, counts


def test_drain_runs_queues_with_weights_in_their_order(session: Session) -> None:
    """A test with ``drain`` does not depend on chance."""
    enqueue_many(session, [("job", "bulk")] * 5, queue="bulk")
    enqueue_many(session, [("job", "critical")] * 5, queue="critical")
    runs = drain(session, succeed, queues=WEIGHTS)
    assert [run.payload for run in runs] == ["critical"] * 5 + ["bulk"] * 5


@pytest.mark.parametrize(
    ("queues", "error", "reason"),
    [
        ({}, ValueError, "queues must name at least one queue"),
        ({"a": 0}, ValueError, "the weight of the queue 'a' must be at least 1, not 0"),
        ({"a": 1, "b": -2}, ValueError, "the weight of the queue 'b' must be at least 1, not -2"),
        ({"a": 1.5}, TypeError, "the weight of the queue 'a' must be an int, not 1.5"),
        ({"a": True}, TypeError, "the weight of the queue 'a' must be an int, not True"),
        ({"a": "2"}, TypeError, "the weight of the queue 'a' must be an int, not '2'"),
        ({"": 1}, ValueError, "queues"),
        ({3: 1}, TypeError, "queues"),
    ],
    ids=str,
)
def test_invalid_weights_are_rejected(
    engine: Engine, queues: Mapping[Any, Any], error: type[Exception], reason: str
) -> None:
    """The message names the queue and the weight."""
    with pytest.raises(error, match=reason):
        QueueWorker(engine, succeed, queues=queues)
