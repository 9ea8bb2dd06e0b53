"""Handler signatures: the type of the payload, and the values of the other parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from sqlalchemy.orm import Session

from ..errors import HandlerError
from ..models.mixins import JobMixin
from ..serializers.typed import check_annotation

SESSION = "session"
JOB = "job"
JOBS = "jobs"


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature of a handler function, read once when the handler is registered.

    :param payload_type: the payload's annotation, or None if any plain value is accepted.
    :param takes_job: whether the first parameter is the job instead of its payload.
    :param injected: a pair (name, :data:`SESSION` or :data:`JOB`) for each further parameter.
    :param is_async: whether calling the function returns a coroutine.
    :param session_types: the classes with which session parameters are annotated.
    :param return_type: the annotation of what the function returns, or of what it returns when it
        is awaited; None if there is none.
    """

    payload_type: Any = None
    takes_job: bool = False
    injected: tuple[tuple[str, str], ...] = ()
    is_async: bool = False
    session_types: tuple[type[Any], ...] = ()
    return_type: Any = None

    @property
    def needs_session(self) -> bool:
        """Whether the handler runs with a session, in whose transaction its job completes.

        A handler that takes the job needs one, so that the job's relationships can be loaded.
        """
        return self.takes_job or any(what == SESSION for _, what in self.injected)

    @property
    def needs_job(self) -> bool:
        """Whether the function takes the job object."""
        return self.takes_job or any(what == JOB for _, what in self.injected)


def read_signature(
    function: Callable[..., Any],
    job_type: str,
    namespace: dict[str, Any],
    job_class: type[Any] | None = None,
    *,
    is_batch: bool = False,
) -> Signature:
    """Return the signature of a handler function.

    :param job_type: the job type, for error messages.
    :param namespace: local names that annotations may use in addition to those of the module.
    :param job_class: the class whose objects the function takes instead of payloads, if any.
    :param is_batch: whether the function takes lists, as a batch handler does. The result has the
        types of their items.
    :raises HandlerError: if the function cannot be a handler, or no value can be supplied for a
        parameter; the message names the parameter.
    """
    where = f"handler of {job_type!r} ({where_is(function)})"
    _require_function(function, where)
    hints = hints_of(function, where, namespace)
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        msg = f"{where} needs a first positional parameter for the {_called(job_class)}"
        if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
            msg += ": if a decorator hides it, use functools.wraps in the decorator"
        raise HandlerError(msg)
    first, *others = parameters
    if first.name in ("self", "cls") and first.name not in hints:
        msg = (
            f"{where} is a method without its object, so the {_called(job_class)} would be passed "
            f"as {first.name!r}: register a bound method"
        )
        raise HandlerError(msg)
    if is_batch:
        from .batch_signature import of_one_job

        hints = of_one_job(hints, first.name, where, job_class)
    given = given_by_partials(function)
    payload_type = _payload_type(first, hints, where, job_class)
    coroutine = is_async(function)
    injected, session_types = injections(
        [parameter for parameter in others if parameter.name not in given],
        hints,
        where,
        "handler",
        is_async=coroutine,
    )
    return Signature(
        payload_type,
        job_class is not None,
        injected,
        coroutine,
        session_types,
        None if (returned := hints.get("return")) in (Any, object) else returned,
    )


def hints_of(function: Any, where: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Return the annotations of the function inside all partials and decorators.

    :raises HandlerError: if an annotation cannot be resolved.
    """
    try:
        plain = innermost(function)
        annotated = plain if inspect.isroutine(plain) else type(plain).__call__
        return get_type_hints(annotated, localns=dict(namespace), include_extras=True)
    except NameError as error:
        msg = (
            f"{where}: an annotation cannot be resolved: {error}; import it outside "
            f"TYPE_CHECKING, or leave the parameter without one"
        )
        raise HandlerError(msg) from error


def injections(
    parameters: Iterable[inspect.Parameter],
    hints: dict[str, Any],
    where: str,
    what: str,
    *,
    is_async: bool,
) -> tuple[tuple[tuple[str, str], ...], tuple[type[Any], ...]]:
    """Return what to pass for parameters, and the classes of the sessions among them.

    :param where: the function, for error messages.
    :param what: "handler" or "middleware", for error messages.
    :raises HandlerError: if no value can be supplied for a parameter.
    """
    injected: list[tuple[str, str]] = []
    session_types: list[type[Any]] = []
    for parameter in parameters:
        annotation = _plain_type(hints.get(parameter.name))
        found = _injectable(annotation)
        if what == "middleware" and _is_list_of_jobs(annotation):
            found = JOBS
        if found == SESSION and is_async_session(annotation) is not is_async:
            msg = (
                f"{where}: {parameter.name!r} is annotated as {annotation.__name__}, but an "
                f"'async def' {what} gets an AsyncSession, and a plain {what} gets a Session"
            )
            raise HandlerError(msg)
        if found is not None and parameter.kind in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        ):
            injected.append((parameter.name, found))
            if found == SESSION:
                session_types.append(annotation)
        elif parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            msg = (
                f"{where}: no value can be supplied for the parameter {parameter.name!r}: annotate "
                f"it as Session (or AsyncSession) or as the job model, or give it a default"
            )
            raise HandlerError(msg)
    return tuple(injected), tuple(session_types)


def require_result_type(signature: Signature, function: Any, job_type: str) -> None:
    """Check that results can be decoded to the type that a handler declares.

    :raises HandlerError: if they cannot.
    """
    try:
        if signature.return_type is not None:
            check_annotation(signature.return_type)
    except TypeError as error:
        msg = (
            f"handler of {job_type!r} ({where_is(function)}): no result can be decoded to the type "
            f"that it returns: {error}"
        )
        raise HandlerError(msg) from error


def _payload_type(
    first: inspect.Parameter, hints: dict[str, Any], where: str, job_class: type[Any] | None
) -> Any:
    """Return the type that payloads are decoded to; None for any plain value, or for the job.

    :raises HandlerError: if the first parameter's annotation does not fit.
    """
    payload_type = hints.get(first.name)
    if _plain_type(payload_type) in (Any, object):
        payload_type = None
    if job_class is not None:
        if payload_type is not None and not _takes(_plain_type(payload_type), job_class):
            msg = (
                f"{where}: the first parameter is the {_called(job_class)}, but {first.name!r} is "
                f"{payload_type}"
            )
            raise HandlerError(msg)
        return None
    if (what := _injectable(_plain_type(payload_type))) is not None:
        msg = f"{where}: the first parameter is the payload, but {first.name!r} is {payload_type}"
        if what == JOB:
            name = _plain_type(payload_type).__name__
            msg += f"; for a job class, register it with @handlers({name})"
        raise HandlerError(msg)
    if payload_type is not None:
        try:
            check_annotation(payload_type)
        except TypeError as error:
            msg = f"{where}: no payload can be decoded to {first.name!r}: {error}"
            raise HandlerError(msg) from error
    return payload_type


def _plain_type(annotation: Any) -> Any:
    """Return an annotation without ``Annotated`` and ``| None``."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        some = [part for part in get_args(annotation) if part is not NoneType]
        return _plain_type(some[0]) if len(some) == 1 else annotation
    return annotation


def _require_function(function: Any, where: str) -> None:
    """Check that calling ``function`` runs a handler.

    :raises HandlerError: if it is a class, a generator function or not callable, or if its
        signature cannot be read.
    """
    if isinstance(function, type):
        msg = (
            f"{where} is a class, so calling it creates an object: register a function, or an "
            f"object that has __call__"
        )
        raise HandlerError(msg)
    if not callable(function):
        msg = f"{where} is not callable"
        if isinstance(function, classmethod):
            msg += ": register the class method after the class statement"
        raise HandlerError(msg)
    body = body_of(function)
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        msg = (
            f"{where} is a generator function, so calling it does not run its body: remove the "
            f"'yield'"
        )
        raise HandlerError(msg)
    try:
        inspect.signature(function)
    except (TypeError, ValueError) as error:
        msg = f"{where} has a signature that cannot be read: wrap it in a function ({error})"
        raise HandlerError(msg) from error


def innermost(function: Any) -> Any:
    """Return the function inside all partials and decorators, which has the annotations."""
    *_, last = _layers(function)
    return last


def _layers(function: Any) -> Iterator[Any]:
    """Yield a function, then each function that partials and decorators wrap, outermost first."""
    while True:
        yield function
        inner = function.func if isinstance(function, partial) else inspect.unwrap(function)
        if inner is function:
            return
        function = inner


def given_by_partials(function: Any) -> set[str]:
    """Return the names of the parameters that partials pass by keyword."""
    partials = (layer for layer in _layers(function) if isinstance(layer, partial))
    return {name for found in partials for name in found.keywords}


def body_of(function: Any) -> Any:
    """Return the function that runs when ``function`` is called, without unwrapping decorators."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004


def _called(job_class: type[Any] | None) -> str:
    return "payload" if job_class is None else job_class.__qualname__


def _takes(annotation: Any, job_class: type[Any]) -> bool:
    return isinstance(annotation, type) and issubclass(job_class, annotation)


def is_async(function: Any) -> bool:
    """Return whether calling ``function``, or its ``__call__`` method, returns a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(body_of(function))


def _injectable(annotation: Any) -> str | None:
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, JobMixin):
        return JOB
    if issubclass(annotation, Session) or is_async_session(annotation):
        return SESSION
    return None


def _is_list_of_jobs(annotation: Any) -> bool:
    items = get_args(annotation) if get_origin(annotation) in (list, Sequence) else ()
    return bool(items) and _injectable(items[0]) == JOB


def is_async_session(annotation: type[Any]) -> bool:
    """Return whether a class is AsyncSession or a subclass of it."""
    # By name, because importing AsyncSession needs greenlet, which is an extra.
    return any(
        base.__name__ == "AsyncSession" and base.__module__.startswith("sqlalchemy.")
        for base in annotation.__mro__
    )


def where_is(function: Any) -> str:
    """Return the dotted name of a function, for messages."""
    function = innermost(function) if callable(function) else function
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{getattr(function, '__module__', '?')}.{name}"
