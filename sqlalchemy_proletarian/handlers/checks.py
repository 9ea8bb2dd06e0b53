"""Checks of a worker's arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ..arguments import at_least_one
from ..errors import HandlerError
from ..models.job_classes import base_of
from ..producer.values import require_name
from ..store.claim_filter import ClaimFilter
from .handler import Handler
from .registry import Handlers
from .signature import is_async_session


def sync_only(
    handlers: Handlers,
    *,
    remedy: str = "run it with sqlalchemy_proletarian.asyncio.AsyncQueueWorker",
) -> Handlers:
    """Return ``handlers`` unchanged if none of them is ``async``.

    :param remedy: the advice in the error message.
    :raises HandlerError: if a handler is ``async``.
    """
    for handler in handlers:
        if handler.signature.is_async:
            msg = f"the handler of {handler.job_type!r} is async: {remedy}"
            raise HandlerError(msg)
    return handlers


def require_served(handlers: Handlers, job_model: type[Any]) -> None:
    """Check that at least one handler can run jobs of ``job_model``.

    :raises HandlerError: if every handler is for a job class of another table.
    """
    listed = list(handlers)
    classes = [handler.job_class for handler in listed if not handler.serves(job_model)]
    if classes and len(classes) == len(listed) and (one := classes[0]) is not None:
        msg = (
            f"no handler is for jobs of {job_model.__qualname__}: the handler of "
            f"{one.__qualname__} needs a worker with job_model={base_of(one).__qualname__}"
        )
        raise HandlerError(msg)


def require_middleware(handlers: Handlers) -> None:
    """Check that the middleware can wrap the handlers.

    :raises HandlerError: if a middleware is ``async`` and a handler is not.
    """
    for handler in handlers:
        if handler.around is not None and not handler.signature.is_async:
            from .middleware import require_plain  # in memory, because there is a middleware

            for middleware in handler.around.middleware:
                what = f"the handler of {handler.job_type!r}, which is a plain function"
                require_plain(middleware, what)


def require_sessions(
    handlers: Handlers, plain_class: type[Any], async_class: type[Any] | None
) -> None:
    """Check that the worker's sessions are of the classes that its handlers declare.

    :param plain_class: the session class for plain handlers.
    :param async_class: the session class for ``async`` handlers; None if the worker runs none.
    :raises HandlerError: if a handler declares another session class than it gets.
    """
    maker = "sessionmaker" if async_class is None else "async_sessionmaker"
    remedy = f"give the worker a session maker instead of an engine, {maker}(engine, OPTION=…)"
    option = "class_" if async_class is None else "sync_session_class"
    for handler in handlers:
        require_session(
            handler,
            plain_class,
            async_class,
            remedy=remedy.replace("OPTION", option),
            async_remedy=remedy.replace("OPTION", "class_"),
        )


def require_session(
    handler: Handler[Any, ..., Any],
    plain_class: type[Any],
    async_class: type[Any] | None,
    *,
    remedy: str,
    async_remedy: str | None = None,
) -> None:
    """Check that a handler and its middleware get sessions of the classes that they declare.

    :param plain_class: the class of a Session.
    :param async_class: the class of an AsyncSession; None if there is none.
    :param remedy: the advice in the error message; ``…`` is replaced by the declared class.
    :param async_remedy: the same, if an AsyncSession is declared.
    :raises HandlerError: if it gets another class, which is not a subclass.
    """
    for what, wanted in _declared_sessions(handler):
        gets = async_class if is_async_session(wanted) else plain_class
        if gets is None or not issubclass(gets, wanted):
            advice = (async_remedy if is_async_session(wanted) else None) or remedy
            msg = (
                f"{what} declares a {_full_name(wanted)}, but gets a "
                f"{_full_name(gets or plain_class)}: {advice.replace('…', wanted.__qualname__)}"
            )
            raise HandlerError(msg)


def declared_session_types(handlers: Handlers) -> list[type[Any]]:
    """Return the session classes that handlers and their middleware declare."""
    return [wanted for handler in handlers for _, wanted in _declared_sessions(handler)]


def _declared_sessions(handler: Handler[Any, ..., Any]) -> Iterator[tuple[str, type[Any]]]:
    """Yield who declares a session, and its class."""
    for wanted in handler.signature.session_types:
        yield f"the handler of {handler.job_type!r}", wanted
    for middleware in handler.around.middleware if handler.around else ():
        for wanted in middleware.session_types:
            yield str(middleware), wanted


def _full_name(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def claim_filter(handlers: Handlers, job_model: type[Any]) -> ClaimFilter | None:
    """Return which types a worker claims; None if it claims all."""
    if handlers.types(job_model) is None:
        return None
    return ClaimFilter(partial(handlers.types, job_model))


def queue_names(queues: str | Sequence[str] | Mapping[str, int]) -> tuple[str, ...]:
    """Return queue names as a tuple without duplicates, in the given order.

    :param queues: one name, a sequence of names, or a mapping of names to weights.
    :raises TypeError: if a name is not a string.
    :raises ValueError: if there is no name, or a name is invalid.
    """
    names = (queues,) if isinstance(queues, str) else tuple(dict.fromkeys(queues))
    if not names:
        msg = "queues must name at least one queue"
        raise ValueError(msg)
    for name in names:
        require_name("queues", name)
    return names


def queue_weights(
    queues: str | Sequence[str] | Mapping[str, int],
) -> Mapping[str, int] | None:
    """Return the weights of queues; None if they are served strictly in their order.

    :raises TypeError: if a weight is not an int.
    :raises ValueError: if a weight is less than 1.
    """
    if not isinstance(queues, Mapping):
        return None
    for name, weight in queues.items():
        at_least_one(f"the weight of the queue {name!r}", weight)
    return dict(queues) if len(queues) > 1 else None
