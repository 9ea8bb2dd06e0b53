"""What can be registered as a handler besides a plain function."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from operator import itemgetter
from typing import Any

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
        (Sender, "Sender.* is a class, and calling it makes an object"),
        (dict, "is a class"),
        (NotCalled(), "cannot be called"),
        (Sender.__dict__["of_class"], "register the method of the class"),
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
