"""Calls of the dashboard. A comment says that the next line has an error, and which."""

from typing import Any, assert_type

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.requests import Request

from sqlalchemy_proletarian import ArchivedJob, Job
from sqlalchemy_proletarian.dashboard import Action, JobTables, dashboard


async def is_operator(request: Request) -> bool:
    return bool(request.headers.get("x-user"))


def redact(job_type: str, payload: Any) -> Any: ...
def write_down(action: Action) -> None: ...


def mounted(
    engine: Engine,
    loop_engine: AsyncEngine,
    maker: sessionmaker[Session],
    loop_maker: async_sessionmaker[AsyncSession],
) -> None:
    assert_type(dashboard(engine, authorize=is_operator), Starlette)
    dashboard(loop_engine, authorize=lambda request: request.user.is_admin, redact=redact)
    dashboard(maker, insecure_local=True, on_action=write_down, actor=lambda request: "ada")
    tables = [JobTables(), JobTables(name="More", job_model=Job, archived_job_model=ArchivedJob)]
    dashboard(loop_maker, read_only=True, tables=tables)
    # error: mypy=arg-type pyright=reportArgumentType
    dashboard("postgresql://localhost")
    # error: mypy=call-arg pyright=reportCallIssue
    dashboard(engine, autorize=is_operator)
    # error: mypy=arg-type pyright=reportArgumentType
    JobTables(job_model=ArchivedJob)
