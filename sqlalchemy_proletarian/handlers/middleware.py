"""Middleware: generator functions that wrap each run of the handlers of a registry.

A middleware runs up to its ``yield``, then the handler runs, then the rest of the middleware. The
first one that was registered is the outermost.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from sqlalchemy.util import greenlet_spawn

from ..errors import HandlerError
from .signature import (
    JOB,
    JOBS,
    SESSION,
    body_of,
    given_by_partials,
    hints_of,
    injections,
    innermost,
    where_is,
)


@dataclass(frozen=True, slots=True)
class Middleware:
    """A middleware function, and what it asks for.

    :param function: what was registered.
    :param opens: called with the values of its parameters; returns a context manager.
    :param is_async: whether that is an async context manager.
    :param injected: a pair of the name, and :data:`SESSION`, :data:`JOB` or :data:`JOBS`, for each
        parameter.
    :param session_types: the classes with which session parameters are annotated.
    """

    function: Any
    opens: Callable[..., Any]
    is_async: bool
    injected: tuple[tuple[str, str], ...]
    session_types: tuple[type[Any], ...]

    def open(self, values: Mapping[str, Any]) -> Any:
        """Return a context manager for one run."""
        return self.opens(**{name: values[what] for name, what in self.injected})

    def needs(self, what: str) -> bool:
        """Return whether it asks for the :data:`SESSION`, the :data:`JOB` or the :data:`JOBS`."""
        return any(asked == what for _, asked in self.injected)

    def __str__(self) -> str:
        return f"the middleware {where_is(self.function)}"


class Around:
    """The middleware of a registry, outermost first, as its handlers call it."""

    def __init__(self, middleware: tuple[Middleware, ...]) -> None:
        self.middleware = middleware
        self.needs_session: bool = any(one.needs(SESSION) for one in middleware)
        self.needs_job: bool = any(one.needs(JOB) or one.needs(JOBS) for one in middleware)

    def run(self, call: Callable[[], Any], values: Mapping[str, Any]) -> Any:
        """Call a plain handler inside all middleware, and return its result.

        :param values: the job and the session.
        """
        with self._named():
            # A thread runs many jobs: what one sets in a context variable is not for the next one.
            return copy_context().run(self._run, call, values, 0)

    def _run(self, call: Callable[[], Any], values: Mapping[str, Any], number: int) -> Any:
        if number == len(self.middleware):
            return call()
        middleware = self.middleware[number]
        require_plain(middleware, "a handler that is a plain function")
        manager = middleware.open(values)
        manager.__enter__()
        try:
            result = self._run(call, values, number + 1)
        except BaseException as error:
            # It may replace the error, but not hide it: the handler has not done its work.
            manager.__exit__(type(error), error, error.__traceback__)
            raise
        manager.__exit__(None, None, None)
        return result

    async def run_async(self, call: Callable[[], Awaitable[Any]], values: Mapping[str, Any]) -> Any:
        """Call an ``async`` handler inside all middleware, and return its result.

        :param values: the job and the AsyncSession.
        """
        session = values[SESSION]
        plain = {**values, SESSION: None if session is None else session.sync_session}
        with self._named():
            return await self._run_async(call, values, plain, 0)

    async def _run_async(
        self,
        call: Callable[[], Awaitable[Any]],
        values: Mapping[str, Any],
        plain: Mapping[str, Any],
        number: int,
    ) -> Any:
        if number == len(self.middleware):
            return await call()
        middleware = self.middleware[number]
        if middleware.is_async:
            manager = middleware.open(values)
            enter, leave = manager.__aenter__, manager.__aexit__
        else:
            enter, leave = _awaitable(middleware, middleware.open(plain))
        await enter()
        try:
            result = await self._run_async(call, values, plain, number + 1)
        except BaseException as error:  # as above
            await leave(type(error), error, error.__traceback__)
            raise
        await leave(None, None, None)
        return result

    @contextmanager
    def _named(self) -> Generator[None]:
        """Add to an error of ``contextlib`` who has not yielded once, as its message does not."""
        try:
            yield
        except RuntimeError as error:
            if str(error).startswith("generator didn't"):
                named = ", ".join(map(str, self.middleware))
                error.add_note(f"A middleware yields once, where the handler runs. Check: {named}.")
            raise


def _awaitable(middleware: Middleware, manager: Any) -> tuple[Any, Any]:
    """Return awaitable functions to enter and to leave a plain context manager."""

    async def in_greenlet(function: Callable[..., Any], *arguments: Any) -> None:
        await greenlet_spawn(function, *arguments)

    async def directly(function: Callable[..., Any], *arguments: Any) -> None:
        function(*arguments)

    # Only a greenlet can use a Session of an asynchronous driver.
    step = in_greenlet if middleware.injected else directly

    async def enter() -> None:
        await step(manager.__enter__)

    async def leave(*error: Any) -> None:
        await step(manager.__exit__, *error)

    return enter, leave


def read_middleware(function: Any, namespace: dict[str, Any]) -> Middleware:
    """Return the middleware that a function is.

    :param namespace: local names that annotations may use in addition to those of the module.
    :raises HandlerError: if the function does not yield, or no value can be supplied for a
        parameter; the message names it.
    """
    where = f"middleware {where_is(function)}"
    opens, is_async = _context_manager(function, where)
    hints = hints_of(function, where, namespace)
    given = given_by_partials(function)
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in given
    ]
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            msg = f"{where}: {parameter.name!r} is positional-only: remove the '/'"
            raise HandlerError(msg)
    injected, session_types = injections(parameters, hints, where, "middleware", is_async=is_async)
    return Middleware(function, opens, is_async, injected, session_types)


def _context_manager(function: Any, where: str) -> tuple[Callable[..., Any], bool]:
    """Return a function that returns a context manager, and whether that is an async one.

    :raises HandlerError: if the function does not yield.
    """
    called: Any = function
    if callable(function) and not isinstance(function, type):
        body = body_of(function)
        if inspect.isgeneratorfunction(body):
            return contextmanager(called), False
        if inspect.isasyncgenfunction(body):
            return asynccontextmanager(called), True
        inside = innermost(function)  # what @contextmanager decorates
        if inside is not function and inspect.isgeneratorfunction(inside):
            return function, False
        if inside is not function and inspect.isasyncgenfunction(inside):
            return function, True
    msg = (
        f"{where} does not yield: write a generator function, which yields once, where the handler "
        f"runs"
    )
    raise HandlerError(msg)


def require_plain(middleware: Middleware, what: str) -> None:
    """Check that a middleware can wrap plain functions.

    :param what: what it has to wrap, for the error message.
    :raises HandlerError: if it is ``async``.
    """
    if middleware.is_async:
        msg = (
            f"{middleware} is async, so it cannot wrap {what}: make it a plain generator function, "
            f"which can wrap plain and async handlers"
        )
        raise HandlerError(msg)


def require_lists(around: Around, job_type: str) -> None:
    """Check that middleware can wrap a batch handler.

    :raises HandlerError: if one takes a single job.
    """
    for middleware in around.middleware:
        if middleware.needs(JOB):
            msg = (
                f"{middleware} takes the job, so it cannot wrap the batch handler of {job_type!r}, "
                f"which runs several: annotate the parameter as a list of the job model; it then "
                f"gets a list from every handler"
            )
            raise HandlerError(msg)
