"""Middleware: code that runs around every job, for tenants, error reports and timing."""

import os
from collections.abc import Iterator
from contextvars import ContextVar
from time import perf_counter

from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    Handlers,
    JobMixin,
    QueueWorker,
    RetryAfter,
    RetryStrategy,
    enqueue,
)

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers(retry=RetryStrategy(retries=1))
current_tenant: ContextVar[str] = ContextVar("current_tenant")


class Base(DeclarativeBase):
    """The application's declarative base."""


class TenantJob(JobMixin, Base):
    """A job of a tenant."""

    __tablename__ = "tenant_job"
    tenant: Mapped[str] = mapped_column()


class ArchivedTenantJob(ArchivedJobMixin, Base):
    """A finished job of a tenant."""

    __tablename__ = "archived_tenant_job"
    tenant: Mapped[str] = mapped_column()


class BusyError(Exception):
    """The partner service is busy."""


@handlers.middleware
def timing(job: TenantJob) -> Iterator[None]:
    """Print how each run ended: the outermost middleware, because it is the first."""
    started = perf_counter()
    ended = "raised"
    try:
        yield
        ended = "returned"
    finally:
        assert perf_counter() >= started
        print(f"{job.tenant}: {job.job_type} {ended}")


@handlers.middleware
def tenant(job: TenantJob, session: Session) -> Iterator[None]:
    """Set the tenant for the row-level security of the handler's transaction, and for its code."""
    setting = text("SELECT set_config('app.tenant', :tenant, true)")
    session.execute(setting, {"tenant": job.tenant})
    current_tenant.set(job.tenant)
    yield


@handlers.middleware
def busy_partners() -> Iterator[None]:
    """Turn an error of a library into a request to retry the job."""
    try:
        yield
    except BusyError as error:
        raise RetryAfter(0, "the partner is busy") from error


@handlers("bill")
def bill(total: int, session: Session, job: TenantJob) -> None:
    """Bill the current tenant, at the second attempt."""
    if job.attempts == 1:
        raise BusyError
    setting = session.scalar(text("SELECT current_setting('app.tenant')"))
    print(f"{total} billed to {current_tenant.get()}, as {setting}")


def main() -> None:
    """Run a job of one tenant, with one retry."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        enqueue(session, "bill", 42, job_model=TenantJob, tenant="acme")
    QueueWorker(engine, handlers, job_model=TenantJob, archived_job_model=ArchivedTenantJob).drain()


if __name__ == "__main__":
    main()
