"""What can be registered as a handler besides a plain function."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from operator import itemgetter
from typing import Annotated, Any

import pytest
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import HandlerError, Handlers


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
def test_annotations_count(function: Any) -> None:
    """Whatever wraps a function, its annotations say what it is handed."""
    handler = Handlers()("send")(function)
    assert handler.signature.payload_type is Mail
    assert handler.needs_session
    assert handler.run(Mail("a"), "session", None)[:2] == (Mail("a"), "session")


def test_a_partial_of_a_coroutine_function() -> None:
    """It is awaited as the function itself."""
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
    ("function", "said"),
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
def test_what_is_refused(function: Any, said: str) -> None:
    """What runs nothing when it is called is refused when it is registered, by its name."""
    with pytest.raises(HandlerError, match=said):
        Handlers()("send")(function)


class AsyncSender:
    async def __call__(self, payload: Mail) -> Any:
        return payload


def driven(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a generator function to its end, as some decorators do."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return list(function(*args, **kwargs))

    return wrapper


@driven
def steps(payload: Mail) -> Iterator[str]:
    yield payload.to


def hidden(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate without functools.wraps."""

    def wrapper(payload: Any) -> Any:
        return function(payload)

    return wrapper


@hidden
def behind(payload: Mail) -> Any:
    return payload


def collecting(*args: Any) -> None: ...


def test_what_a_partial_gives_is_not_asked_for() -> None:
    """A session, or anything else, that a partial gives by keyword stays as the partial says."""
    handler = Handlers()("send")(partial(send, session="mine", smtp="x"))  # type: ignore[arg-type]
    assert not handler.needs_session
    assert handler.run(Mail("a"), "the worker's", None) == (Mail("a"), "mine", "x")
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
def test_coroutine_functions_by_any_name(function: Any) -> None:
    """What gives a coroutine when it is called is known as such."""
    handler = Handlers()("send")(function)
    assert handler.signature.is_async
    assert handler.signature.payload_type is Mail


def test_static_methods() -> None:
    """A static method may be registered inside its class, above or below the decorator."""
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
        assert handler.run(Mail("a"), None, None) == Mail("a")
        assert called(Mail("b")) == Mail("b")  # type: ignore[operator]


def test_functions_that_are_driven_by_a_decorator() -> None:
    """A generator inside a decorator that runs it is a handler like any other."""
    handler = Handlers()("send")(steps)
    assert handler.signature.payload_type is Mail
    assert handler.run(Mail("a"), None, None) == ["a"]


def test_decorated_without_wraps() -> None:
    """A decorator that hides the annotations leaves a plain payload, or is refused."""
    handler = Handlers()("send")(behind)
    assert handler.signature.payload_type is None
    with pytest.raises(HandlerError, match=r"positional parameter.* use functools\.wraps"):
        Handlers()("send")(collecting)


def test_lambdas() -> None:
    """A lambda takes a plain payload."""
    handler = Handlers()("send")(lambda payload: payload)
    assert handler.signature.payload_type is None
    assert handler.run({"a": 1}, None, None) == {"a": 1}


def test_a_method_without_its_object() -> None:
    """A method that is registered inside its class is refused: nobody would give it an object."""
    with pytest.raises(HandlerError, match="is a method without its object"):

        class Service:
            @Handlers()("send")
            def send(self, session: Session) -> None: ...


def test_annotations_that_say_more() -> None:
    """What Annotated adds to a type leaves a session a session, and a plain payload plain."""

    def documented(
        payload: Annotated[Any, "a text"], db: Annotated[Session, "the job's"]
    ) -> None: ...
    def misplaced(session: Annotated[Session, "the job's"]) -> None: ...

    handler = Handlers()("send")(documented)
    assert handler.signature.payload_type is None
    assert handler.needs_session
    with pytest.raises(HandlerError, match="the first parameter is the payload, but 'session' is"):
        Handlers()("send")(misplaced)
