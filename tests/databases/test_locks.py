"""Rows locked by other sessions, on every database with row locks."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Job
from tests.integration.support import archived, eventually, put, succeed

from .places import Place, only


@only(lambda place: place.server != "sqlite")
def test_locked_rows_are_skipped(place: Place, engine: Engine) -> None:
    """A job whose row is locked does not delay later jobs, and runs when the lock is released."""
    locked, *others = [put(engine, "any", n) for n in range(3)]
    with Session(engine.execution_options(isolation_level="READ COMMITTED")) as other:
        other.execute(select(Job).where(Job.job_id == locked).with_for_update()).all()
        worker = place.worker(engine, succeed, polling_interval=timedelta(seconds=0.2))
        worker.start()
        try:
            eventually(lambda: {job.job_id for job in archived(engine)} == set(others))
            other.rollback()
            eventually(lambda: len(archived(engine)) == 3)
        finally:
            other.rollback()
            worker.stop()
