"""Tests of middleware: what can be registered, and how errors pass through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import HandlerError, Handlers, Job
from sqlalchemy_proletarian.execution.invoke import call_function
from sqlalchemy_proletarian.handlers.middleware import read_middleware
from sqlalchemy_proletarian.lifecycle.run import Run


def run(handlers: Handlers, job_type: str = "job", session: Any = None, job: Any = None) -> Any:
    """Call a handler as a worker does, and wait for it."""
    handler = handlers.find(job_type)
    assert handler is not None
    result = call_function(Run(cast("Any", None), handler, job), handler, "payload", session)
    return asyncio.run(result) if handler.signature.is_async else result


SEEN: list[Any] = []


def plain(job: Job, session: Session, tag: str = "default") -> Iterator[None]:
    SEEN.append((job, session, tag))
    yield


async def coroutine(session: AsyncSession, *, job: Job) -> AsyncIterator[None]:
    yield


class Scope:
    def __call__(self, job: Job) -> Iterator[None]:
        SEEN.append(job)
        yield

    def method(self, job: Job) -> Iterator[None]:
        SEEN.append(job)
        yield


def no_parameters() -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("function", "injected", "is_async"),
    [
        (plain, {"job", "session"}, False),
        (coroutine, {"job", "session"}, True),
        (no_parameters, set(), False),
        (contextmanager(plain), {"job", "session"}, False),
        (asynccontextmanager(coroutine), {"job", "session"}, True),
        (partial(plain, tag="given"), {"job", "session"}, False),
        (partial(coroutine, job="given"), {"session"}, True),
        (Scope(), {"job"}, False),
        (Scope().method, {"job"}, False),
    ],
    ids=range(9),
)
def test_what_can_be_middleware(function: Any, injected: set[str], is_async: bool) -> None:
    """Generator functions, partials, methods, objects, and what @contextmanager decorates."""
    middleware = read_middleware(function, {})
    assert {name for name, _ in middleware.injected} == injected
    assert middleware.is_async is is_async
    assert hasattr(
        middleware.open({"job": None, "session": None}), "__aenter__" if is_async else "__enter__"
    )


def not_a_generator(job: Job) -> None: ...


async def not_a_generator_either(job: Job) -> None: ...


def unknown(payload: str) -> Iterator[None]:
    yield


def bare(job) -> Iterator[None]:  # type: ignore[no-untyped-def]
    yield


def wrong_session(session: AsyncSession) -> Iterator[None]:
    yield


async def wrong_async_session(session: Session) -> AsyncIterator[None]:
    yield


def positional(job: Job, /) -> Iterator[None]:
    yield


def unresolved(job: Missing) -> Iterator[None]:  # type: ignore[name-defined]  # noqa: F821
    yield


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (not_a_generator, "test_middleware.not_a_generator does not yield: write a generator"),
        (not_a_generator_either, "does not yield"),
        (Scope, "does not yield"),
        (3, "does not yield"),
        (unknown, "no value can be supplied for the parameter 'payload'"),
        (bare, "no value can be supplied for the parameter 'job'"),
        (wrong_session, "'session' is annotated as AsyncSession, but an 'async def' middleware"),
        (wrong_async_session, "'session' is annotated as Session, but an 'async def' middleware"),
        (positional, "'job' is positional-only"),
        (unresolved, "an annotation cannot be resolved: name 'Missing'"),
    ],
    ids=range(10),
)
def test_what_cannot_be_middleware(function: Any, reason: str) -> None:
    """The error names the function, and the parameter."""
    with pytest.raises(HandlerError) as error:
        Handlers().middleware(function)
    assert reason in str(error.value)


def test_annotations_may_name_local_classes() -> None:
    class OwnSession(Session):
        pass

    def scope(session: OwnSession) -> Iterator[None]:
        yield

    handlers = Handlers()
    assert handlers.middleware(scope) is scope


def test_values_are_passed_to_middleware() -> None:
    handlers = Handlers()
    handlers.middleware(partial(plain, tag="given"))
    handlers("job")(lambda payload: payload)
    SEEN.clear()
    assert run(handlers, session="the session", job="the job") == "payload"
    assert SEEN == [("the job", "the session", "given")]


def test_middleware_says_what_it_needs() -> None:
    """A handler needs the session and the job if its middleware does."""
    handlers = Handlers()
    before = handlers("before")(lambda payload: None)
    assert (before.needs_session, before.needs_job) == (False, False)

    @handlers.middleware
    def with_job(job: Job) -> Iterator[None]:
        yield

    assert (before.needs_session, before.needs_job) == (False, True)

    @handlers.middleware
    def with_session(session: Session) -> Iterator[None]:
        yield

    after = handlers("after")(lambda payload: None)
    for handler in (before, after):
        assert (handler.needs_session, handler.needs_job) == (True, True)


class OriginalError(Exception):
    """What the handler raises."""


class AnotherError(Exception):
    """What a middleware raises instead."""


def registry(error: BaseException | None, *, is_async: bool) -> Handlers:
    handlers = Handlers()

    def handler(payload: Any) -> None:
        if error is not None:
            raise error

    async def async_handler(payload: Any) -> None:
        handler(payload)

    handlers("job")(async_handler if is_async else handler)
    return handlers


def noting(seen: list[Any], name: str, react: Callable[[], None] = lambda: None) -> Any:
    """Return a middleware that notes what it sees, and calls a function if the handler raises."""

    def scope() -> Iterator[None]:
        seen.append(f"{name} begins")
        try:
            yield
        except BaseException as error:
            seen.append((name, type(error).__name__))
            react()
        else:
            seen.append(f"{name} ends")

    return scope


def noting_async(seen: list[Any], name: str, react: Callable[[], None] = lambda: None) -> Any:
    """Return an ``async`` middleware that does the same."""

    async def scope() -> AsyncIterator[None]:
        with contextmanager(noting(seen, name, react))():
            await asyncio.sleep(0)
            yield

    return scope


kinds = pytest.mark.parametrize(
    ("make", "is_async"),
    [(noting, False), (noting, True), (noting_async, True)],
    ids=["plain", "plain around async", "async"],
)


@kinds
def test_the_first_middleware_is_the_outermost(make: Any, is_async: bool) -> None:
    seen: list[Any] = []
    handlers = registry(None, is_async=is_async)
    handlers.middleware(make(seen, "outer"))
    handlers.middleware(make(seen, "inner"))
    run(handlers)
    assert seen == ["outer begins", "inner begins", "inner ends", "outer ends"]


@kinds
@pytest.mark.parametrize(
    "error",
    [
        OriginalError(),
        StopIteration(),
        StopAsyncIteration(),
        asyncio.CancelledError(),
        RuntimeError(),
    ],
    ids=repr,
)
def test_middleware_sees_errors_and_cannot_hide_them(
    make: Any, is_async: bool, error: BaseException
) -> None:
    """An error that a middleware catches is still raised, to the outer middleware, too."""
    if is_async and isinstance(error, StopIteration):
        pytest.skip("a coroutine cannot raise StopIteration")
    seen: list[Any] = []
    handlers = registry(error, is_async=is_async)
    handlers.middleware(make(seen, "outer"))
    handlers.middleware(make(seen, "inner"))
    with pytest.raises(type(error)) as raised:
        run(handlers)
    if not isinstance(error, asyncio.CancelledError):  # asyncio.run raises another one
        assert raised.value is error
    assert seen[2:] == [("inner", type(error).__name__), ("outer", type(error).__name__)]


@kinds
def test_middleware_may_raise_another_error(make: Any, is_async: bool) -> None:
    """The outer middleware sees the new error, whose context is the original one."""
    seen: list[Any] = []
    handlers = registry(OriginalError(), is_async=is_async)

    def react() -> None:
        raise AnotherError

    handlers.middleware(make(seen, "outer"))
    handlers.middleware(make(seen, "inner", react))
    with pytest.raises(AnotherError) as raised:
        run(handlers)
    assert isinstance(raised.value.__context__, OriginalError)
    assert seen[2:] == [("inner", "OriginalError"), ("outer", "AnotherError")]


def test_a_middleware_that_raises_first_leaves_the_handler_alone() -> None:
    seen: list[str] = []
    handlers = Handlers()

    @handlers.middleware
    def scope() -> Iterator[None]:
        raise AnotherError
        yield

    @handlers("job")
    def job(payload: Any) -> None:
        seen.append("ran")

    with pytest.raises(AnotherError):
        run(handlers)
    assert seen == []


def never() -> Iterator[None]:
    return
    yield


def twice() -> Iterator[None]:
    yield
    yield


def twice_after_an_error() -> Iterator[None]:
    try:
        yield
    except OriginalError:
        yield


async def never_async() -> AsyncIterator[None]:
    return
    yield


async def twice_async() -> AsyncIterator[None]:
    yield
    yield


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (never, None),
        (twice, None),
        (twice_after_an_error, OriginalError()),
        (never_async, None),
        (twice_async, None),
    ],
)
def test_a_middleware_yields_once(function: Any, error: Exception | None) -> None:
    """The error of another number of yields names the middleware."""
    handlers = registry(error, is_async="async" in function.__name__)
    handlers.middleware(function)
    with pytest.raises(RuntimeError, match="generator didn't") as raised:
        run(handlers)
    (note,) = raised.value.__notes__
    assert note.startswith("A middleware yields once, where the handler runs. Check: ")
    assert note.endswith(f"the middleware {__name__}.{function.__name__}.")


def test_a_traceback_shows_the_handler() -> None:
    """The error is the one that the handler raised, with its traceback."""
    handlers = registry(OriginalError(), is_async=False)
    handlers.middleware(no_parameters)
    with pytest.raises(OriginalError) as raised:
        run(handlers)
    assert raised.traceback[-1].name == "handler"
    assert "no_parameters" not in [entry.name for entry in raised.traceback]


def test_async_middleware_does_not_wrap_a_plain_handler() -> None:
    """If it is registered while a worker runs, the attempts fail with the reason."""
    handlers = registry(None, is_async=False)
    handlers.middleware(coroutine)
    with pytest.raises(HandlerError, match="coroutine is async, so it cannot wrap"):
        run(handlers)
