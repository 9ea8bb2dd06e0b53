"""Tests of handlers that are not plain functions: partials, methods, objects, lambdas."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from operator import itemgetter
from typing import Annotated, Any, cast

import pytest
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import HandlerError, Handlers
from sqlalchemy_proletarian.execution.invoke import call_function
from sqlalchemy_proletarian.lifecycle.run import Run


def run(handler: Any, payload: Any, session: Any, job: Any) -> Any:
    """Call a handler as a worker does."""
    return call_function(Run(cast("Any", None), handler, job), handler, payload, session)


@dataclass
class Mail:
    to: str


def send(payload: Mail, session: Session, smtp: Any = None) -> Any:
    return payload, session, smtp


async def send_async(payload: Mail, smtp: Any) -> Any:
    return payload, smtp


class Sender:
    def __call__(self, payload: Mail, session: Session) -> Any:
        return payload, session

    def send(self, payload: Mail, session: Session) -> Any:
        return payload, session

    @staticmethod
    def static(payload: Mail, session: Session) -> Any:
        return payload, session

    @classmethod
    def of_class(cls, payload: Mail, session: Session) -> Any:
        return payload, session


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "function",
    [
        partial(send, smtp="x"),
        partial(partial(send), smtp="x"),
        decorated(send),
        decorated(partial(send, smtp="x")),
        Sender(),
        Sender().send,
        Sender.static,
        Sender.of_class,
        partial(Sender().send),
    ],
)
def test_annotations_of_a_wrapped_function_are_used(function: Any) -> None:
    """The annotations of the innermost function determine the arguments."""
    handler = Handlers()("send")(function)
    assert handler.signature.payload_type is Mail
    assert handler.needs_session
    assert run(handler, Mail("a"), "session", None)[:2] == (Mail("a"), "session")


def test_a_partial_of_a_coroutine_function_is_async() -> None:
    handler = Handlers()("send")(partial(send_async, smtp="x"))
    assert handler.signature.is_async
    assert handler.signature.payload_type is Mail


def generator(payload: Any) -> Iterator[int]:
    yield 1


async def async_generator(payload: Any) -> AsyncIterator[int]:
    yield 1


class NotCalled:
    pass


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (Sender, "Sender.* is a class, so calling it creates an object"),
        (dict, "is a class"),
        (NotCalled(), "is not callable"),
        (Sender.__dict__["of_class"], "register the class method"),
        (generator, "generator.* is a generator function"),
        (async_generator, "is a generator function"),
        (partial(generator), "is a generator function"),
        (itemgetter(1), "'send'"),
        (partial(send, Mail("a")), "first parameter is the payload|first positional"),
    ],
)
def test_unsupported_callables_are_rejected(function: Any, message: str) -> None:
    """A callable that cannot run jobs is rejected at registration, and the message names it."""
    with pytest.raises(HandlerError, match=message):
        Handlers()("send")(function)


class AsyncSender:
    async def __call__(self, payload: Mail) -> Any:
        return payload


def consumed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Consume the generator that the function returns, as some decorators do."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return list(function(*args, **kwargs))

    return wrapper


@consumed
def steps(payload: Mail) -> Iterator[str]:
    yield payload.to


def hidden(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function without ``functools.wraps``."""

    def wrapper(payload: Any) -> Any:
        return function(payload)

    return wrapper


@hidden
def behind(payload: Mail) -> Any:
    return payload


def collecting(*args: Any) -> None: ...


def test_arguments_bound_by_a_partial_are_not_injected() -> None:
    """A session or other keyword argument that a partial binds is not overridden."""
    handler = Handlers()("send")(partial(send, session="mine", smtp="x"))  # type: ignore[arg-type]
    assert not handler.needs_session
    assert run(handler, Mail("a"), "the worker's", None) == (Mail("a"), "mine", "x")
    outer = Handlers()("send")(decorated(partial(send, session="mine")))  # type: ignore[arg-type]
    assert not outer.needs_session


@pytest.mark.parametrize(
    "function",
    [
        AsyncSender(),
        AsyncSender().__call__,
        partial(AsyncSender()),
        partial(partial(send_async), smtp=1),
    ],
)
def test_callables_that_return_a_coroutine_are_async(function: Any) -> None:
    handler = Handlers()("send")(function)
    assert handler.signature.is_async
    assert handler.signature.payload_type is Mail


def test_a_static_method_can_be_registered_inside_its_class() -> None:
    """The registration may be above or below ``@staticmethod``."""
    handlers = Handlers()

    class Service:
        @staticmethod
        @handlers("below")
        def below(payload: Mail) -> Any:
            return payload

        @handlers("above")
        @staticmethod
        def above(payload: Mail) -> Any:
            return payload

    for job_type, called in (("below", Service.below), ("above", Service.above)):
        handler = handlers.find(job_type)
        assert handler is not None
        assert handler.signature.payload_type is Mail
        assert run(handler, Mail("a"), None, None) == Mail("a")
        assert called(Mail("b")) == Mail("b")  # type: ignore[operator]


def test_a_generator_that_a_decorator_consumes_is_accepted() -> None:
    handler = Handlers()("send")(steps)
    assert handler.signature.payload_type is Mail
    assert run(handler, Mail("a"), None, None) == ["a"]


def test_a_decorator_without_wraps_hides_the_annotations() -> None:
    """The payload is then untyped; a wrapper with only ``*args`` is rejected."""
    handler = Handlers()("send")(behind)
    assert handler.signature.payload_type is None
    with pytest.raises(HandlerError, match=r"positional parameter.* use functools\.wraps"):
        Handlers()("send")(collecting)


def test_a_lambda_gets_a_plain_payload() -> None:
    handler = Handlers()("send")(lambda payload: payload)
    assert handler.signature.payload_type is None
    assert run(handler, {"a": 1}, None, None) == {"a": 1}


def test_an_unbound_method_is_rejected() -> None:
    """A method registered inside its class would be called without ``self``."""
    with pytest.raises(HandlerError, match="is a method without its object"):

        class Service:
            @Handlers()("send")
            def send(self, session: Session) -> None: ...


def test_annotated_does_not_hide_the_type() -> None:
    """An annotated session is injected, and ``Annotated[Any, ...]`` is an untyped payload."""

    def documented(
        payload: Annotated[Any, "a text"], db: Annotated[Session, "the job's"]
    ) -> None: ...
    def misplaced(session: Annotated[Session, "the job's"]) -> None: ...

    handler = Handlers()("send")(documented)
    assert handler.signature.payload_type is None
    assert handler.needs_session
    with pytest.raises(HandlerError, match="the first parameter is the payload, but 'session' is"):
        Handlers()("send")(misplaced)
