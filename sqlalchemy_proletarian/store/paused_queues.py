"""The SQL with which workers read which queues are paused."""

from __future__ import annotations

from sqlalchemy import Select, Table, bindparam, select


def select_paused(paused: Table) -> Select[str]:
    """Return which of ``queues`` are paused."""
    return select(paused.c.queue).where(paused.c.queue.in_(bindparam("queues", expanding=True)))
