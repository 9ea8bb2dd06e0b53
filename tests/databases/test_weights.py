"""Queues that share a worker by weight, on every database."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, enqueue_many

from .places import Place


def test_queues_share_a_worker_by_weight(place: Place, engine: Engine) -> None:
    """Three jobs of one queue run for each job of the other; in the end all have run."""
    with Session(engine) as session, session.begin():
        for queue in ("critical", "bulk"):
            enqueue_many(session, [("job", queue)] * 120, queue=queue)
    seen: list[str] = []
    handlers = Handlers()

    @handlers("job")
    def job(payload: str) -> None:
        seen.append(payload)

    place.run_all(engine, handlers, queues={"critical": 3, "bulk": 1}, batch_size=4)
    assert Counter(seen) == {"critical": 120, "bulk": 120}
    assert 75 - 12 <= Counter(seen[:100])["critical"] <= 75 + 12
    assert seen[-60:] == ["bulk"] * 60
