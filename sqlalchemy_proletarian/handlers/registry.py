"""Handlers: from a job's type to the function that runs it, and what that function is handed.

::

    handlers = Handlers()


    @handlers("send-email", retry=RetryStrategy(retries=4, delays=[timedelta(seconds=2)]))
    def send_email(payload: Email, session: Session, job: Job) -> None: ...


    send_email.enqueue(session, Email(to="a@example.com"))

The first parameter is the payload, decoded to its annotation. Further ones are filled by
annotation: ``Session`` (or ``AsyncSession``) is the session in whose transaction the job completes,
the job model is the job itself. A handler registered for a mapped class of jobs,
``@handlers(SendInvoice)``, is handed the job in the place of a payload.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from sqlalchemy import inspect as sa_inspect

from ..arguments import at_least_one
from ..clock import as_timedelta
from ..errors import HandlerError
from ..models.job_classes import identity_of
from ..models.mixins import DEFAULT_PRIORITY, DEFAULT_QUEUE, JobMixin
from ..producer.enqueue import JSON, JobT, enqueue, require_name, require_priority
from ..retry import Delay, RetryFunction, RetryLike, RetryStrategy, as_strategy
from ..serializers.json_serializer import Serializer, check_names
from .signature import JOB, SESSION, Signature, is_async, read_signature, where_is

if TYPE_CHECKING:
    from ..producer.enqueue import AnySession

PayloadT = TypeVar("PayloadT")
Injected = ParamSpec("Injected")
ReturnT = TypeVar("ReturnT")


class Handler(Generic[PayloadT, Injected, ReturnT]):
    """A registered handler: still callable as the function it was, and able to enqueue itself.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        job_type: str,
        function: Callable[Concatenate[PayloadT, Injected], ReturnT],
        signature: Signature,
        *,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        retry: RetryStrategy | None = None,
        timeout: float | None = None,
        serializer: Serializer | None = None,
        job_class: type[Any] | None = None,
        max_deaths: int | None = None,
    ) -> None:
        self.job_type = job_type
        self.job_class = job_class
        self.function = function
        self.signature = signature
        self.queue = queue
        self.priority = priority
        self.retry = retry
        self.timeout = timeout
        self.serializer = serializer
        self.max_deaths = max_deaths
        self.needs_session = signature.needs_session
        self.needs_job = signature.needs_job
        update_wrapper(self, function, updated=())  # its attributes are not ours

    def __call__(
        self, payload: PayloadT, *args: Injected.args, **kwargs: Injected.kwargs
    ) -> ReturnT:
        """Call the function itself, as in a test of it."""
        return self.function(payload, *args, **kwargs)

    def enqueue(self, session: AnySession, payload: PayloadT, **options: Any) -> Any:
        """Add a job for this handler to the session; see :func:`.enqueue` for the options.

        Type, queue, priority and serializer come from the registration. For a handler of a job
        class the payload is an object of that class.

        .. versionadded:: 0.1
        """
        if self.job_class is not None:
            if not isinstance(payload, self.job_class):
                msg = f"a {self.job_class.__qualname__} is needed, not {payload!r:.100}"
                raise TypeError(msg)
            return enqueue(session, cast("JobMixin", payload), **options)
        serializer = options.pop("serializer", None) or self.serializer or JSON
        options = {
            "queue": self.queue,
            "priority": self.priority,
            **options,
            "serializer": _Annotated(serializer, self.signature.payload_type),
        }
        return enqueue(session, self.job_type, payload, **options)

    def serves(self, job_model: type[Any]) -> bool:
        """Tell whether jobs of a model are what this handler is for."""
        return self.job_class is None or issubclass(self.job_class, job_model)

    def decode(self, text: str, serializer: Serializer) -> Any:
        """Return a job's payload as this handler declares it; None if it takes the job instead.

        :param serializer: the worker's, for a handler that was registered without one.
        """
        if self.signature.takes_job:
            return None
        return (self.serializer or serializer).decode(text, self.signature.payload_type)

    def run(self, payload: Any, session: Any, job: Any) -> Any:
        """Call the function with the payload and what its signature asks for."""
        first = job if self.signature.takes_job else payload
        if not self.signature.injected:
            return self.function(first)  # type: ignore[call-arg]  # it takes nothing else
        values = {SESSION: session, JOB: job}
        injected = {name: values[what] for name, what in self.signature.injected}
        return self.function(first, **injected)  # type: ignore[call-arg]  # as its signature says


@dataclass(frozen=True, slots=True)
class _Annotated:
    """A serializer that encodes with the annotation of one handler's payload."""

    serializer: Serializer
    payload_type: Any

    def encode(self, payload: Any, annotation: Any = None) -> str:
        return self.serializer.encode(payload, annotation or self.payload_type or Any)

    def decode(self, text: str, annotation: Any = None) -> Any:
        return self.serializer.decode(text, annotation or self.payload_type)

    def check_names(self, *, queue: str, job_type: str) -> None:
        check_names(self.serializer, queue=queue, job_type=job_type)


@dataclass(frozen=True, slots=True)
class _Registration:
    """The decorator that ``handlers("type")`` returns."""

    handlers: Handlers
    job_type: str
    namespace: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    job_class: type[Any] | None = None

    def __call__(
        self, function: Callable[Concatenate[PayloadT, Injected], ReturnT]
    ) -> Handler[PayloadT, Injected, ReturnT]:
        signature = read_signature(function, self.job_type, self.namespace, self.job_class)
        handler = Handler(
            self.job_type, function, signature, job_class=self.job_class, **self.options
        )
        self.handlers.add(handler)
        return handler


class _ClassRegistration(Protocol[JobT]):
    """What ``handlers(JobClass)`` returns, as type checkers see it."""

    def __call__(
        self, function: Callable[Concatenate[JobT, Injected], ReturnT], /
    ) -> Handler[JobT, Injected, ReturnT]: ...


class Handlers:
    """A registry of handlers by job type.

    :param retry: the strategy of every type that is registered without one; no retry by default.

    .. versionadded:: 0.1
    """

    def __init__(self, *, retry: RetryLike | None = None) -> None:
        self.retry = None if retry is None else as_strategy(retry)
        self._handlers: dict[str, Handler[Any, ..., Any]] = {}
        self._retry_functions: dict[str, RetryFunction] = {}

    @overload
    def __call__(
        self,
        job_type: type[JobT],
        *,
        retry: RetryLike | None = ...,
        timeout: Delay | None = ...,
        max_deaths: int | None = ...,
    ) -> _ClassRegistration[JobT]: ...
    @overload
    def __call__(
        self,
        job_type: str,
        *,
        queue: str = ...,
        priority: int = ...,
        retry: RetryLike | None = ...,
        timeout: Delay | None = ...,
        serializer: Serializer | None = ...,
        max_deaths: int | None = ...,
    ) -> _Registration: ...
    def __call__(
        self,
        job_type: str | type[Any],
        *,
        queue: str | None = None,
        priority: int | None = None,
        retry: RetryLike | None = None,
        timeout: Delay | None = None,
        serializer: Serializer | None = None,
        max_deaths: int | None = None,
    ) -> Any:
        """Register the decorated function for ``job_type``.

        :param job_type: a string; or a mapped class of jobs, whose objects the function is handed.
            Queue and priority are then those of the class, ``__queue__`` and ``__priority__``.
        :param queue: where ``handler.enqueue`` puts its jobs.
        :param priority: the priority that ``handler.enqueue`` gives them, 0 to 9.
        :param retry: a :class:`RetryStrategy` or its mapping form.
        :param timeout: how long a run may take, as a timedelta or whole milliseconds. An ``async``
            handler is cancelled then, and the attempt has failed with a :class:`JobTimeoutError`; a
            plain function cannot be stopped, and is reported. No limit by default.
        :param serializer: for payloads of this type; by default the worker's.
        :param max_deaths: how many workers in a row may die, or lose the lease, while they run a
            job of this type and no other, until it fails with a :class:`.WorkerDiedError`; by
            default the worker's ``max_deaths``.
        :raises TypeError: if an option is of the wrong type.
        :raises ValueError: if a name, the priority or ``max_deaths`` is out of range.
        :raises HandlerError: if the type has a handler already, or the function's signature cannot
            be served; the message names the parameter.
        """
        job_class = None
        if isinstance(job_type, type):
            job_class = job_type
            job_type = _type_of(job_class)
            if not (queue is None and priority is None and serializer is None):
                msg = (
                    f"{job_class.__qualname__} says itself what its queue and priority are, with "
                    f"__queue__ and __priority__, and has no payload for a serializer"
                )
                raise HandlerError(msg)
        if not isinstance(job_type, str):
            msg = (
                f"a handler is registered for a job type, as in @handlers('send'), or for a mapped "
                f"class of jobs, not {job_type!r}"
            )
            raise HandlerError(msg)
        queue = DEFAULT_QUEUE if queue is None else queue
        priority = DEFAULT_PRIORITY if priority is None else priority
        require_name("job_type", job_type)
        require_name("queue", queue)
        require_priority(priority)
        options = {
            "queue": queue,
            "priority": priority,
            "retry": None if retry is None else as_strategy(retry),
            "timeout": None
            if timeout is None
            else as_timedelta("timeout", timeout, zero=False).total_seconds(),
            "serializer": serializer,
            "max_deaths": None if max_deaths is None else at_least_one("max_deaths", max_deaths),
        }
        # Annotations may name classes that are local to the function registering the handler.
        return _Registration(self, job_type, sys._getframe(1).f_locals, options, job_class)

    def retry_strategy(self, job_type: str | type[Any]) -> Callable[[RetryFunction], RetryFunction]:
        """Register the decorated function of (job, exception) as the strategy of ``job_type``.

        It returns a :class:`RetryStrategy`, its mapping form, or None for no retry, and wins over a
        strategy given at registration.
        """
        job_type = job_type if isinstance(job_type, str) else _type_of(job_type)

        def register(function: RetryFunction) -> RetryFunction:
            if job_type in self._retry_functions:
                msg = f"{job_type!r} has a retry strategy function already"
                raise HandlerError(msg)
            self._retry_functions[job_type] = function
            return function

        return register

    def add(self, handler: Handler[Any, ..., Any]) -> None:
        """Add a handler made elsewhere; :raises HandlerError: if its type is taken."""
        taken = self._handlers.get(handler.job_type)
        if taken is not None:
            msg = f"{handler.job_type!r} has a handler already: {where_is(taken.function)}"
            raise HandlerError(msg)
        self._handlers[handler.job_type] = handler

    def find(self, job_type: str) -> Handler[Any, ..., Any] | None:
        """Return the handler of ``job_type``, or None if nobody registered one."""
        return self._handlers.get(job_type)

    def types(self, job_model: type[Any]) -> Sequence[str] | None:
        """Return the types of a model's jobs that have a handler; None if that is every type."""
        return [name for name, handler in self._handlers.items() if handler.serves(job_model)]

    def retry_function(self, job_type: str) -> RetryFunction | None:
        """Return the strategy function of ``job_type``, if there is one."""
        return self._retry_functions.get(job_type)

    def __iter__(self) -> Iterator[Handler[Any, ..., Any]]:
        """Iterate over the registered handlers."""
        return iter(self._handlers.values())


def _type_of(job_class: type[Any]) -> str:
    """Return the job type that a mapped class is for."""
    job_type = None
    if issubclass(job_class, JobMixin) and sa_inspect(job_class, raiseerr=False) is not None:
        job_type = identity_of(job_class)
    if not isinstance(job_type, str):
        msg = (
            f"{job_class.__qualname__} is no class of one job type: that is mapped, inherits from "
            f'a job model with __mapper_args__ = {{"polymorphic_on": "job_type"}}, and has the '
            f"type as its polymorphic_identity"
        )
        raise HandlerError(msg)
    return job_type


class _EveryType(Handlers):
    """A plain ``handler(job_type, payload)`` callable that takes jobs of every type."""

    def __init__(self, function: Callable[[str, Any], Any]) -> None:
        super().__init__()
        self._function = function
        self._signature = Signature(is_async=is_async(function))

    def __iter__(self) -> Iterator[Handler[Any, ..., Any]]:
        yield Handler("any type", partial(self._function, "any type"), self._signature)

    def types(self, job_model: type[Any]) -> None:  # noqa: ARG002
        return None

    def find(self, job_type: str) -> Handler[Any, ..., Any]:
        handler = super().find(job_type)
        if handler is None:
            handler = Handler(job_type, partial(self._function, job_type), self._signature)
            self._handlers[job_type] = handler
        return handler


def as_handlers(handlers: Handlers | Callable[[str, Any], Any]) -> Handlers:
    """Return ``handlers``, or a registry that gives every job to a plain callable."""
    if isinstance(handlers, Handlers):
        return handlers
    if callable(handlers):
        return _EveryType(handlers)
    msg = f"handlers must be Handlers or a callable of (job_type, payload), not {handlers!r}"
    raise TypeError(msg)
