"""What of a job may be read after the commit, when a worker may have removed its row."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import URL, Engine, delete, inspect
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import ObjectDeletedError

from sqlalchemy_proletarian import Job, enqueue, enqueue_unique
from sqlalchemy_proletarian.asyncio import enqueue_unique as enqueue_unique_awaited

from .support import Customer, EmailJob, archived, run_all, succeed
from .test_bases import Numbers, Ring
from .test_custom_tables import tables


def by_enqueue(session: Session) -> Any:
    return enqueue(session, "mail")


def by_adding(session: Session) -> Any:
    job = Job(job_type="mail")
    session.add(job)
    return job


def by_enqueue_unique(session: Session) -> Any:
    return enqueue_unique(session, "mail", unique_key="one")


WAYS = [by_enqueue, by_adding, by_enqueue_unique]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_id_of_a_job_that_is_gone(engine: Engine, way: Callable[[Session], Any]) -> None:
    """The id stays after the commit, in the session and out of it; the rest is as it was."""
    with Session(engine) as session:
        job = way(session)
        session.commit()
        assert run_all(engine, succeed) == 1
        job_id = job.job_id
        assert [done.job_id for done in archived(engine)] == [job_id]
        assert repr(job) == f"<Job {job_id}>"
        with pytest.raises(ObjectDeletedError):
            job.queue  # noqa: B018
        assert session.get(Job, job_id) is None
    assert job.job_id == job_id
    assert repr(job) == f"<Job {job_id}>"
    assert pickle.loads(pickle.dumps(job)).job_id == job_id  # noqa: S301


def test_an_expired_job_is_loaded(engine: Engine) -> None:
    """A job that is there is loaded again as any object, in one go, and so are other objects."""
    with Session(engine) as session:
        job, customer = by_enqueue(session), None
        session.commit()
        assert inspect(job).expired
        assert job.queue == "default"
        assert not inspect(job).unloaded
        session.expire(job, ["job_id", "queue"])
        job_id = job.job_id
        assert inspect(job).unloaded == {"queue"}
        session.refresh(job)
        assert (job.job_id, job.attempts) == (job_id, 0)
        session.execute(delete(Job))
        session.rollback()
        assert session.get(Job, job_id) is job
        assert customer is None


def test_other_objects_expire_as_ever(shop: Engine) -> None:
    """No key of the user's own objects stays."""
    with Session(shop) as session:
        customer = Customer(name="Ann")
        job = enqueue(session, "mail", job_model=EmailJob, customer=customer)
        session.commit()
        assert "id" in inspect(customer).unloaded
        assert "job_id" not in inspect(job).unloaded


def test_a_rollback(engine: Engine) -> None:
    """What was never committed keeps the id that it was given, and may be added again."""
    with Session(engine) as session:
        job = by_enqueue(session)
        job_id = job.job_id
        session.flush()
        session.rollback()
        assert job.job_id == job_id
        session.add(job)
        session.commit()
        assert job.job_id == job_id


def test_ids_that_the_database_numbers(engine: Engine) -> None:
    """They stay likewise, once the row is inserted."""
    with tables(engine, Numbers.metadata), Session(engine) as session:
        job = enqueue(session, "ring", job_model=Ring)
        session.commit()
        assert "job_id" in vars(job)
        assert isinstance(job.job_id, int)


def test_in_a_loop(url: URL, engine: Engine) -> None:
    """No greenlet is missed when the id or the repr is asked for after the commit."""

    async def main() -> list[Any]:
        bind = create_async_engine(url.set(drivername="postgresql+asyncpg"))
        async with AsyncSession(bind) as session:
            added = Job(job_type="mail")
            session.add(added)
            jobs = [
                enqueue(session, "mail"),
                await enqueue_unique_awaited(session, "mail", unique_key="one"),
                added,
            ]
            await session.commit()
            assert [repr(job) for job in jobs] == [f"<Job {job.job_id}>" for job in jobs if job]
            found = [job.job_id for job in jobs if job]
        await bind.dispose()
        return found

    assert len(set(asyncio.run(main()))) == 3
    assert run_all(engine, succeed) == 3


def test_repr_of_what_is_not_complete() -> None:
    """A job without values, or without a state of SQLAlchemy's, has a repr."""
    assert repr(Job()) == "<Job None>"
    assert repr(Job.__new__(Job)) == "<Job None>"
    assert repr(Job(job_type="mail")) == "<Job 'mail' None>"
    assert repr(Job(queue="mails")) == "<Job None in 'mails', attempts None>"


def test_repr_of_the_deleted_and_detached(engine: Engine) -> None:
    """A job that was deleted, or taken out of its session while expired, has a repr."""
    with Session(engine) as session:
        job, other = by_enqueue(session), by_enqueue(session)
        session.commit()
        session.expunge(other)
        session.delete(job)
        session.commit()
        assert repr(job).startswith("<Job ")
        assert repr(other) == f"<Job {other.job_id}>"
