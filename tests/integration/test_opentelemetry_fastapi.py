"""The trace of an HTTP request goes on in the job that the request has enqueued."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from httpx import ASGITransport, AsyncClient
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from sqlalchemy_proletarian import Handlers
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .loops import driver_and_hold, in_a_loop, until
from .spans import Seen, attributes, id_of, parent_of, seen, trace_of
from .support import archived, queued

__all__ = ["seen"]

handlers = Handlers()


@handlers("welcome")
async def welcome(payload: str, session: AsyncSession) -> None:
    """Enqueue a job of its own."""
    remind.enqueue(session, payload)


@handlers("remind")
def remind(payload: str) -> None:
    """Run in a thread."""


def application(engine: AsyncEngine) -> FastAPI:
    """Return an application whose requests have a session, which commits when they succeed."""
    sessions = async_sessionmaker(engine)
    app = FastAPI()

    async def session_of_request() -> AsyncIterator[AsyncSession]:
        async with sessions.begin() as session:
            yield session

    async def sign_up(
        email: str, session: Annotated[AsyncSession, Depends(session_of_request)]
    ) -> str:
        welcome.enqueue(session, email)
        if "@" not in email:
            raise HTTPException(422, "no address")
        return email

    # Not decorated: annotations of local names could not be resolved.
    sign_up.__annotations__ = {
        "email": str,
        "session": Annotated[AsyncSession, Depends(session_of_request)],
        "return": str,
    }
    app.post("/users")(sign_up)
    return app


async def post(seen: Seen, engine: AsyncEngine, email: str) -> int:
    app = application(engine)
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=seen.tracers, exclude_spans=["receive", "send"]
    )
    async with AsyncClient(transport=ASGITransport(app), base_url="http://app") as client:
        response = await client.post("/users", params={"email": email})
    return response.status_code


@driver_and_hold
@in_a_loop
async def test_a_job_joins_the_trace_of_its_request(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any], url: URL, seen: Seen
) -> None:
    async with AsyncQueueWorker(loop_engine, handlers, **held):
        assert await post(seen, loop_engine, "ada@example.com") == 200
        await until(lambda: len(archived(engine)) == 2)

    (server,) = seen.spans(SpanKind.SERVER)
    first_sent, second_sent = seen.sent
    first_run, second_run = seen.processed
    assert server.name == "POST /users"
    assert parent_of(server) is None
    assert parent_of(first_sent) == id_of(server)
    assert parent_of(first_run) == id_of(first_sent)
    assert parent_of(second_sent) == id_of(first_run)
    assert parent_of(second_run) == id_of(second_sent)
    assert {trace_of(span) for span in seen.spans()} == {trace_of(server)}
    assert attributes(second_run)["proletarian.job.type"] == "remind"


@driver_and_hold
@in_a_loop
async def test_a_request_that_is_rolled_back_has_no_run(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any], seen: Seen
) -> None:
    assert await post(seen, loop_engine, "ada") == 422
    assert await AsyncQueueWorker(loop_engine, handlers, **held).drain() == 0
    assert queued(engine) == []
    (sent,) = seen.sent
    assert sent.status.status_code is StatusCode.UNSET
    assert seen.processed == []
    assert len(seen.spans(SpanKind.SERVER)) == 1
