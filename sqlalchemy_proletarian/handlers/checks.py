"""What a worker checks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..database.connections import SessionSource
from ..errors import HandlerError
from ..models.job_classes import base_of
from ..producer.enqueue import require_name
from ..store.claim_filter import KnownTypes
from .registry import Handler, Handlers


def sync_only(handlers: Handlers) -> Handlers:
    """Return ``handlers``, or raise :class:`HandlerError` if one of them is ``async``."""
    for handler in handlers:
        if handler.signature.is_async:
            msg = (
                f"the handler of {handler.job_type!r} is async: run it with "
                f"sqlalchemy_proletarian.asyncio.AsyncQueueWorker"
            )
            raise HandlerError(msg)
    return handlers


def require_served(handlers: Handlers, job_model: type[Any]) -> None:
    """Raise :class:`HandlerError` if every handler is for job classes of another table."""
    listed = list(handlers)
    classes = [handler.job_class for handler in listed if not handler.serves(job_model)]
    if classes and len(classes) == len(listed) and (one := classes[0]) is not None:
        msg = (
            f"no handler is for jobs of {job_model.__qualname__}: that of {one.__qualname__} needs "
            f"a worker with job_model={base_of(one).__qualname__}"
        )
        raise HandlerError(msg)


def require_sessions(handlers: Handlers, sessions: SessionSource) -> None:
    """Raise :class:`HandlerError` if a handler wants a session of a class that it will not get."""
    maker = "sessionmaker" if sessions.async_class is None else "async_sessionmaker"
    for handler in handlers:
        gets, option = sessions.plain_class, "class_"
        if sessions.async_class is not None:
            if handler.signature.is_async:
                gets = sessions.async_class
            else:
                option = "sync_session_class"
        remedy = (
            f"give the worker a session maker in the place of an engine, "
            f"{maker}(engine, {option}=…)"
        )
        require_session(handler, gets, remedy=remedy)


def require_session(handler: Handler[Any, ..., Any], gets: type[Any], *, remedy: str) -> None:
    """Raise :class:`HandlerError` if a handler wants a session of another class than it gets.

    :param remedy: what to do; an ellipsis in it stands for the class.
    """
    for wanted in handler.signature.session_types:
        if not issubclass(gets, wanted):
            msg = (
                f"the handler of {handler.job_type!r} wants a {_full_name(wanted)}, but gets a "
                f"{_full_name(gets)}: {remedy.replace('…', wanted.__qualname__)}"
            )
            raise HandlerError(msg)


def _full_name(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def known_types(handlers: Handlers, job_model: type[Any]) -> KnownTypes | None:
    """Return the types that a worker claims; None if it claims all."""
    if handlers.types(job_model) is None:
        return None
    return KnownTypes(lambda: handlers.types(job_model) or ())


def queue_names(queues: str | Sequence[str]) -> tuple[str, ...]:
    """Return one queue's name, or several, as a tuple of valid names."""
    names = (queues,) if isinstance(queues, str) else tuple(dict.fromkeys(queues))
    if not names:
        msg = "queues must name at least one queue"
        raise ValueError(msg)
    for name in names:
        require_name("queues", name)
    return names
