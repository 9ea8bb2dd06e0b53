"""Handlers: from a job's type to the function that runs it, and what that function is handed.

::

    handlers = Handlers()


    @handlers("send-email", retry=RetryStrategy(retries=4, delays=[timedelta(seconds=2)]))
    def send_email(payload: Email, session: Session, job: Job) -> None: ...


    send_email.enqueue(session, Email(to="a@example.com"))

The first parameter is the payload, decoded to its annotation. Further ones are filled by
annotation: ``Session`` (or ``AsyncSession``) is the session in whose transaction the job completes,
the job model is the job itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from .clock import as_timedelta
from .errors import HandlerError
from .job import JSON, enqueue, require_name, require_priority
from .models import DEFAULT_PRIORITY, DEFAULT_QUEUE
from .retry import Delay, RetryFunction, RetryLike, RetryStrategy, as_strategy
from .serializers import Serializer, check_names
from .signatures import JOB, SESSION, Signature, is_async, read_signature, where_is

if TYPE_CHECKING:
    from .job import AnySession

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
    ) -> None:
        self.job_type = job_type
        self.function = function
        self.signature = signature
        self.queue = queue
        self.priority = priority
        self.retry = retry
        self.timeout = timeout
        self.serializer = serializer
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

        Type, queue, priority and serializer come from the registration.

        .. versionadded:: 0.1
        """
        serializer = options.pop("serializer", None) or self.serializer or JSON
        options = {
            "queue": self.queue,
            "priority": self.priority,
            **options,
            "serializer": _Annotated(serializer, self.signature.payload_type),
        }
        return enqueue(session, self.job_type, payload, **options)

    def decode(self, text: str, serializer: Serializer) -> Any:
        """Return a job's payload as this handler declares it.

        :param serializer: the worker's, for a handler that was registered without one.
        """
        return (self.serializer or serializer).decode(text, self.signature.payload_type)

    def run(self, payload: Any, session: Any, job: Any) -> Any:
        """Call the function with the payload and what its signature asks for."""
        if not self.signature.injected:
            return self.function(payload)  # type: ignore[call-arg]  # it takes nothing else
        values = {SESSION: session, JOB: job}
        injected = {name: values[what] for name, what in self.signature.injected}
        return self.function(payload, **injected)  # type: ignore[call-arg]  # as its signature says


@dataclass(frozen=True, slots=True)
class _Annotated:
    """A serializer that encodes with the annotation of one handler's payload."""

    serializer: Serializer
    payload_type: Any

    def encode(self, payload: Any, annotation: Any = None) -> str:
        return self.serializer.encode(payload, annotation or self.payload_type)

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

    def __call__(
        self, function: Callable[Concatenate[PayloadT, Injected], ReturnT]
    ) -> Handler[PayloadT, Injected, ReturnT]:
        signature = read_signature(function, self.job_type, self.namespace)
        handler = Handler(self.job_type, function, signature, **self.options)
        self.handlers.add(handler)
        return handler


class Handlers:
    """A registry of handlers by job type.

    :param retry: the strategy of every type that is registered without one; no retry by default.

    .. versionadded:: 0.1
    """

    def __init__(self, *, retry: RetryLike | None = None) -> None:
        self.retry = None if retry is None else as_strategy(retry)
        self._handlers: dict[str, Handler[Any, ..., Any]] = {}
        self._retry_functions: dict[str, RetryFunction] = {}

    def __call__(
        self,
        job_type: str,
        *,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        retry: RetryLike | None = None,
        timeout: Delay | None = None,
        serializer: Serializer | None = None,
    ) -> _Registration:
        """Register the decorated function for ``job_type``.

        :param queue: where ``handler.enqueue`` puts its jobs.
        :param priority: the priority that ``handler.enqueue`` gives them, 0 to 9.
        :param retry: a :class:`RetryStrategy` or its mapping form.
        :param timeout: how long a run may take, as a timedelta or whole milliseconds. An ``async``
            handler is cancelled then, and the attempt has failed with a :class:`JobTimeoutError`; a
            plain function cannot be stopped, and is reported. No limit by default.
        :param serializer: for payloads of this type; by default the worker's.
        :raises TypeError: if an option is of the wrong type.
        :raises ValueError: if a name or the priority is out of range.
        :raises HandlerError: if the type has a handler already, or the function's signature cannot
            be served; the message names the parameter.
        """
        if not isinstance(job_type, str):
            msg = (
                f"a handler is registered for a job type, as in @handlers('send'), not {job_type!r}"
            )
            raise HandlerError(msg)
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
        }
        # Annotations may name classes that are local to the function registering the handler.
        return _Registration(self, job_type, sys._getframe(1).f_locals, options)

    def retry_strategy(self, job_type: str) -> Callable[[RetryFunction], RetryFunction]:
        """Register the decorated function of (job, exception) as the strategy of ``job_type``.

        It returns a :class:`RetryStrategy`, its mapping form, or None for no retry, and wins over a
        strategy given at registration.
        """

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

    def retry_function(self, job_type: str) -> RetryFunction | None:
        """Return the strategy function of ``job_type``, if there is one."""
        return self._retry_functions.get(job_type)

    def __iter__(self) -> Iterator[Handler[Any, ..., Any]]:
        """Iterate over the registered handlers."""
        return iter(self._handlers.values())


class _EveryType(Handlers):
    """A plain ``handler(job_type, payload)`` callable that takes jobs of every type."""

    def __init__(self, function: Callable[[str, Any], Any]) -> None:
        super().__init__()
        self._function = function
        self._signature = Signature(is_async=is_async(function))

    def __iter__(self) -> Iterator[Handler[Any, ..., Any]]:
        yield Handler("any type", partial(self._function, "any type"), self._signature)

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
