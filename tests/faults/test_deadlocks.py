"""Jobs that keep deadlocking on databases where a deadlock rolls back the whole transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, insert, select

from .fleet import Fleet, attempts, audit, await_empty, put_for_each
from .program import STOCK
from .sites import on


@on("mariadb", "mysql")
def test_deadlocks_over_and_over(engine: Engine, workers: Fleet, soak: float) -> None:
    """Each job takes effect once, however often the server rolls back its whole transaction.

    So do the finished jobs that shared the transaction. The victim of a deadlock does not fail.
    """
    with engine.begin() as connection:
        connection.execute(insert(STOCK), [{"name": name, "taken": 0} for name in "ab"])
    deadlocking: list[tuple[str, Any]] = [("take", ["a", "b"]), ("take", ["b", "a"])]
    fast: list[tuple[str, Any]] = [("effect", 0.0)]
    ids = put_for_each(workers.kinds, engine, (fast + deadlocking) * int(20 + soak))
    for kind in workers.kinds:
        workers.start(kind, *kind.patiently, "--batch-window", "60")
    await_empty(engine, 120 + 2 * soak)
    assert workers.stop() == [0] * len(workers.kinds)
    audit(engine, ids, workers.effects_by_job())
    with engine.connect() as connection:
        assert set(connection.scalars(select(STOCK.c.taken))) == {len(ids) * 2 // 3}
    assert max(attempts(engine).values()) > 1, "no deadlock occurred"
