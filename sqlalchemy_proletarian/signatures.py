"""What a handler function asks for: its payload's type, and what its other parameters are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from sqlalchemy.orm import Session

from .errors import HandlerError
from .models import JobMixin
from .serializers import check_annotation

SESSION = "session"
JOB = "job"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a handler function asks for, read once at its registration.

    :param payload_type: the payload's annotation, or None where any plain value is taken.
    :param injected: for each further parameter its name and what goes into it.
    """

    payload_type: Any = None
    injected: tuple[tuple[str, str], ...] = ()
    is_async: bool = False

    @property
    def needs_session(self) -> bool:
        """Whether the function takes the session in whose transaction its job completes."""
        return any(what == SESSION for _, what in self.injected)

    @property
    def needs_job(self) -> bool:
        """Whether the function takes the job's row."""
        return any(what == JOB for _, what in self.injected)


def read_signature(
    function: Callable[..., Any], job_type: str, namespace: dict[str, Any]
) -> Signature:
    """Read what ``function`` asks for.

    :param namespace: names that its annotations may use besides those of its module.
    :raises HandlerError: if a parameter cannot be served; the message names it.
    """
    where = f"handler of {job_type!r} ({where_is(function)})"
    try:
        plain = inspect.unwrap(function)
        annotated = plain if inspect.isroutine(plain) else type(plain).__call__
        hints = get_type_hints(annotated, localns=dict(namespace))
    except NameError as error:
        msg = (
            f"{where}: an annotation cannot be resolved: {error}; import it outside "
            f"TYPE_CHECKING, or leave the parameter without one"
        )
        raise HandlerError(msg) from error
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        msg = f"{where} needs a first positional parameter for the payload"
        raise HandlerError(msg)
    payload, *others = parameters
    payload_type = hints.get(payload.name)
    if payload_type in (Any, object):
        payload_type = None
    if _injectable(payload_type) is not None:
        msg = f"{where}: the first parameter is the payload, but {payload.name!r} is {payload_type}"
        raise HandlerError(msg)
    if payload_type is not None:
        try:
            check_annotation(payload_type)
        except TypeError as error:
            msg = f"{where}: no payload can be decoded to {payload.name!r}: {error}"
            raise HandlerError(msg) from error
    injected: list[tuple[str, str]] = []
    for parameter in others:
        annotation: Any = hints.get(parameter.name)
        what = _injectable(annotation)
        if what == SESSION and _is_async_session(annotation) is not is_async(function):
            msg = (
                f"{where}: {parameter.name!r} is annotated as {annotation.__name__}, but the "
                f"session of an 'async def' handler is an AsyncSession, that of a plain one a "
                f"Session"
            )
            raise HandlerError(msg)
        if what is not None and parameter.kind in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        ):
            injected.append((parameter.name, what))
        elif parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            msg = (
                f"{where}: nothing can be given for the parameter {parameter.name!r}: annotate it "
                f"as Session (or AsyncSession) or as the job model, or give it a default"
            )
            raise HandlerError(msg)
    return Signature(payload_type, tuple(injected), is_async(function))


def is_async(function: Any) -> bool:
    """Tell whether calling ``function``, or the object's ``__call__``, gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method, not whether there is one
    )


def _injectable(annotation: Any) -> str | None:
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, JobMixin):
        return JOB
    if issubclass(annotation, Session) or _is_async_session(annotation):
        return SESSION
    return None


def _is_async_session(annotation: type[Any]) -> bool:
    # By name, because importing AsyncSession needs greenlet, which is an extra.
    return any(
        base.__name__ == "AsyncSession" and base.__module__.startswith("sqlalchemy.")
        for base in annotation.__mro__
    )


def where_is(function: Any) -> str:
    """Return a function's dotted name, for messages."""
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{getattr(function, '__module__', '?')}.{name}"
