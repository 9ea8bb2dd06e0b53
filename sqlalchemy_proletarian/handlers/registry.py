"""Handlers: the registry that maps job types to the functions that run them.

::

    handlers = Handlers()


    @handlers("send-email", retry=RetryStrategy(retries=4, delays=[timedelta(seconds=2)]))
    def send_email(payload: Email, session: Session, job: Job) -> None: ...


    send_email.enqueue(session, Email(to="a@example.com"))

The first parameter is the payload, decoded to its annotation. The values of further parameters
depend on their annotations: ``Session`` (or ``AsyncSession``) is the session in whose transaction
the job completes, and the job model is the job itself. A handler registered for a mapped job class,
``@handlers(SendInvoice)``, receives the job instead of a payload.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    Protocol,
    TypeVar,
    Unpack,
    overload,
)

from ..errors import HandlerError
from ..models.values import UTC_ZONE
from ..producer.options import JobT
from ..producer.values import require_name, require_priority
from ..retry import RetryFunction, RetryLike, RetryStrategy, as_strategy
from .change_triggers import ChangeTriggers
from .class_handlers import refuse_job_options, type_of
from .handler import Handler, Injected, PayloadT, ReturnT
from .options import (
    DEFAULT_OPTIONS,
    CheckedOptions,
    HandlerOptions,
    JobClassOptions,
    check_options,
)
from .signature import read_signature, require_result_type, where_is

if TYPE_CHECKING:
    from .batch import BatchRegistration, ClassBatchRegistration
    from .middleware import Around
    from .recurring import Declared, RecurringRegistration

MiddlewareT = TypeVar(
    "MiddlewareT",
    bound=Callable[
        ...,
        Iterator[Any]
        | AsyncIterator[Any]
        | AbstractContextManager[Any]
        | AbstractAsyncContextManager[Any],
    ],
)


@dataclass(frozen=True, slots=True)
class _Registration:
    """The decorator that ``handlers("type")`` returns."""

    handlers: Handlers
    job_type: str
    namespace: dict[str, Any]
    options: CheckedOptions = DEFAULT_OPTIONS
    job_class: type[Any] | None = None

    def __call__(
        self, function: Callable[Concatenate[PayloadT, Injected], ReturnT]
    ) -> Handler[PayloadT, Injected, ReturnT]:
        signature = read_signature(function, self.job_type, self.namespace, self.job_class)
        if self.options.keep_result:
            require_result_type(signature, function, self.job_type)
        handler = Handler(self.job_type, function, signature, self.options, self.job_class)
        self.handlers.add(handler)
        return handler


class _ClassRegistration(Protocol[JobT]):
    """The type of ``handlers(JobClass)`` for type checkers."""

    def __call__(
        self, function: Callable[Concatenate[JobT, Injected], ReturnT], /
    ) -> Handler[JobT, Injected, ReturnT]: ...


class Handlers(ChangeTriggers):
    """A registry of handlers by job type.

    :param retry: the retry strategy, or its mapping form, of types that are registered without one.
        None by default: the worker's ``retry_strategy`` applies.
    :param owner: the name under which :meth:`recurring` jobs are recorded in the table, 1 to 255
        characters; "code" by default. Programs with different recurring jobs that share the table
        need different names, because each removes what it no longer defines.
    :raises TypeError: if ``retry`` is not a strategy or mapping, or ``owner`` is not a string.
    :raises ValueError: if ``retry`` contains a negative number, or ``owner`` is empty or too long.

    .. versionadded:: 0.1
    """

    def __init__(self, *, retry: RetryLike | None = None, owner: str = "code") -> None:
        super().__init__()
        require_name("owner", owner)
        self.owner: str = owner
        self.recurring_jobs: list[Declared] = []
        self.retry: RetryStrategy | None = None if retry is None else as_strategy(retry)
        self.keeping: set[str] = set()
        """The job types whose results are kept."""
        self.batch_sizes: dict[str, int] = {}
        """How many jobs a call of a batch handler has at most, by job type."""
        self._handlers: dict[str, Handler[Any, ..., Any]] = {}
        self._retry_functions: dict[str, RetryFunction] = {}
        self._around: Around | None = None

    @overload
    def __call__(
        self, job_type: type[JobT], **options: Unpack[JobClassOptions]
    ) -> _ClassRegistration[JobT]: ...
    @overload
    def __call__(self, job_type: str, **options: Unpack[HandlerOptions]) -> _Registration: ...
    def __call__(self, job_type: str | type[Any], **options: Any) -> Any:
        """Return a decorator that registers a function for ``job_type``.

        :param job_type: a string of 1 to 255 characters, or a mapped job class. For a class, the
            function receives the job object instead of a payload, and ``queue``, ``priority`` and
            ``serializer`` must not be given: the class declares ``__queue__`` and ``__priority__``.
        :param options: the keyword arguments described in :class:`.HandlerOptions`.
        :raises TypeError: if an option is unknown or of the wrong type.
        :raises ValueError: if a name or the value of an option is out of range.
        :raises HandlerError: if ``job_type`` is invalid; by the decorator, if the type already has
            a handler or the function's signature is not supported. The message names the parameter.
        """
        name, job_class, checked = self._checked(job_type, options)
        # Annotations may name classes that are local to the function registering the handler.
        return _Registration(self, name, sys._getframe(1).f_locals, checked, job_class)

    @overload
    def batch(
        self, job_type: type[JobT], *, size: int = ..., **options: Unpack[JobClassOptions]
    ) -> ClassBatchRegistration[JobT]: ...
    @overload
    def batch(
        self, job_type: str, *, size: int = ..., **options: Unpack[HandlerOptions]
    ) -> BatchRegistration: ...
    def batch(self, job_type: str | type[Any], *, size: int = 100, **options: Any) -> Any:
        """Return a decorator that registers a batch handler: one call runs many jobs.

        The first parameter of the function receives the list of the payloads, and a parameter that
        is annotated as a list of the job model receives their jobs. All jobs of a call share the
        session, and complete in its transaction. The function returns None if all of them have
        succeeded. If some have failed, it raises :class:`.BatchFailed`, or returns a list with
        None or an exception for each payload.

        If it raises anything else, nobody knows which job is to blame: what it wrote is rolled
        back, and the jobs run again in calls of half as many, down to one job, whose attempt has
        then failed. Only :class:`.Snooze` and :class:`.RetryAfter` apply to all jobs of a call.

        :param job_type: as for ``handlers(…)``; for a mapped job class, the function receives a
            list of job objects.
        :param size: how many jobs a call has at most, 1 to 10,000; 100 by default. A worker in
            transaction mode claims as many, whatever its ``batch_size`` is.
        :param options: the keyword arguments described in :class:`.HandlerOptions`. ``timeout`` is
            that of a call; the others apply to each job. ``keep_result`` and the limits
            (``concurrency``, ``concurrency_key``, ``rate``) are not possible.
        :raises TypeError: as for ``handlers(…)``, or if ``size`` is not an int.
        :raises ValueError: as for ``handlers(…)``, or if ``size`` is out of range.
        :raises HandlerError: as for ``handlers(…)``.

        .. versionadded:: 0.1
        """
        # A process without batch handlers does not need them in memory.
        from .batch import BatchRegistration, checked_size, refuse_options_of_one_job

        name, job_class, checked = self._checked(job_type, options)
        refuse_options_of_one_job(name, checked)
        namespace = sys._getframe(1).f_locals
        return BatchRegistration(name, checked_size(size), namespace, checked, job_class, self.add)

    @staticmethod
    def _checked(
        job_type: str | type[Any], options: dict[str, Any]
    ) -> tuple[str, type[Any] | None, CheckedOptions]:
        """Return the name, the job class and the options of a registration."""
        job_class = None
        if isinstance(job_type, type):
            job_class = job_type
            job_type = type_of(job_class)
            refuse_job_options(job_class, options)
        if not isinstance(job_type, str):
            msg = (
                f"a handler must be registered for a job type, as in @handlers('send'), or for a "
                f"mapped job class, not {job_type!r}"
            )
            raise HandlerError(msg)
        require_name("job_type", job_type)
        return job_type, job_class, check_options(options)

    def recurring(
        self,
        name: str,
        *,
        cron: str | None = None,
        every: timedelta | None = None,
        timezone: str = UTC_ZONE,
        payload: Any = None,
        queue: str | None = None,
        priority: int | None = None,
        catch_up: Literal["last", "none", "all"] = "last",
    ) -> RecurringRegistration:
        """Return a decorator that enqueues jobs of a handler again and again.

        It decorates a handler, or a plain function, which becomes the handler of the type ``name``.
        It can be applied several times. Workers with these handlers write a row to the table of
        recurring jobs, and enqueue a job at each tick, whose ``unique_key`` is the name with the
        tick, such as ``nightly-report@2026-05-01T01:00:00Z``.

        :param name: the name of the recurring job, 1 to 200 characters, unique in the table.
        :param cron: a cron expression with the five fields minute, hour, day of month, month and
            day of week. Requires the extra ``recurring``.
        :param every: the time from tick to tick instead of ``cron``: a timedelta of whole seconds.
            The ticks are counted from 1970-01-01 00:00 UTC, whenever the worker starts.
        :param timezone: the time zone of ``cron``, a name of the IANA database such as
            "Europe/Oslo"; "UTC" by default. When clocks go back, a time of day has one tick; when
            they go forward, a time that is skipped has its tick right after the gap.
        :param payload: the payload of each job; None by default.
        :param queue: the queue of the jobs; by default that of the handler.
        :param priority: the priority of the jobs, 0 (first) to 9 (last); by default that of the
            handler.
        :param catch_up: which ticks are enqueued if several are due, because no worker was running:
            "last", the default, only the last one; "none" the last one if it is less than a minute
            late; "all" all of them.
        :raises ImportError: if ``cron`` is given and the extra is not installed.
        :raises TypeError: if an argument is of the wrong type.
        :raises ValueError: if a value is not valid, or not exactly one of ``cron`` and ``every`` is
            given; the message says which.
        :raises HandlerError: if the name is declared already; by the decorator, if the jobs of the
            handler have no payload, or as by ``handlers(…)``.

        .. versionadded:: 0.1
        """
        # A process without recurring jobs does not need them in memory.
        from ..periodic.definitions import require_recurring_name
        from ..periodic.due import as_catch_up
        from ..periodic.timing import timing_of
        from .recurring import Declared, RecurringRegistration

        require_recurring_name(name)
        if any(declared.name == name for declared in self.recurring_jobs):
            msg = f"there is a recurring job {name!r} already: choose another name"
            raise HandlerError(msg)
        timing = timing_of(cron, every, timezone)
        policy = as_catch_up(catch_up).value
        if queue is not None:
            require_name("queue", queue)
        if priority is not None:
            require_priority(priority)
        register = _Registration(self, name, sys._getframe(1).f_locals)

        def declare(handler: Handler[Any, ..., Any]) -> None:
            self.recurring_jobs.append(
                Declared(name, timing, handler, payload, queue, priority, policy)
            )

        return RecurringRegistration(name, register, declare)

    def retry_strategy(self, job_type: str | type[Any]) -> Callable[[RetryFunction], RetryFunction]:
        """Return a decorator that registers a function as the retry strategy of ``job_type``.

        The function is called with (job, exception) after a failed attempt. It returns a
        :class:`.RetryStrategy`, its mapping form, or None for no retry. It takes precedence over
        the strategy of the registration.

        :param job_type: a string, or a mapped job class.
        :raises HandlerError: if the class has no job type; by the decorator, if the type already
            has a retry strategy function.
        """
        job_type = job_type if isinstance(job_type, str) else type_of(job_type)

        def register(function: RetryFunction) -> RetryFunction:
            if job_type in self._retry_functions:
                msg = f"{job_type!r} already has a retry strategy function"
                raise HandlerError(msg)
            self._retry_functions[job_type] = function
            return function

        return register

    def add(self, handler: Handler[Any, ..., Any]) -> None:
        """Add a handler.

        :param handler: what ``@handlers(…)`` of another registry returned.
        :raises HandlerError: if its job type already has a handler.
        """
        taken = self._handlers.get(handler.job_type)
        if taken is not None:
            msg = f"{handler.job_type!r} already has a handler: {where_is(taken.function)}"
            raise HandlerError(msg)
        if self._around is not None:
            handler.wrap(self._around)
        self._handlers[handler.job_type] = handler
        if handler.batch_size is not None:
            self.batch_sizes[handler.job_type] = handler.batch_size
        if handler.keep_result:
            self.keeping.add(handler.job_type)

    def middleware(self, function: MiddlewareT) -> MiddlewareT:
        """Run a generator function around each run of the handlers; returns it unchanged.

        A decorator::

            @handlers.middleware
            def tenant(job: Job, session: Session) -> Iterator[None]:
                session.execute(text("SET LOCAL app.tenant = …"))
                yield  # the handler runs here

        It applies to all handlers of this registry, also to those that are registered already. The
        first middleware is the outermost. If the handler raises, ``yield`` raises the exception: a
        middleware may raise another one, but cannot hide it. If a middleware raises, the attempt
        fails; :class:`.RetryAfter`, :class:`.Snooze` and :class:`.Discard` work as in a handler.

        :param function: a generator function that yields once, or one that is decorated with
            ``@contextmanager``. Its parameters are annotated as ``Session`` (or ``AsyncSession``)
            or as the job model, or have a default. A list of the job model receives all jobs of a
            call of a batch handler, and a list of one job elsewhere; a middleware that takes a
            single job cannot wrap batch handlers. A plain one
            wraps plain and ``async`` handlers, so it must not block if there are ``async`` ones;
            its Session may be used in both. An ``async`` one wraps only ``async`` handlers: a
            worker with a plain one is not created.
        :raises HandlerError: if the function does not yield, or no value can be supplied for a
            parameter; the message names it.

        .. versionadded:: 0.1
        """
        # A process without middleware does not need it in memory.
        from .middleware import Around, read_middleware

        middleware = read_middleware(function, sys._getframe(1).f_locals)
        before = () if self._around is None else self._around.middleware
        self._around = Around((*before, middleware))
        for handler in self._handlers.values():
            handler.wrap(self._around)
        return function

    def find(
        self, job_type: str, job_model: type[Any] | None = None
    ) -> Handler[Any, ..., Any] | None:
        """Return the handler of ``job_type``, or None if there is none.

        :param job_type: the job type.
        :param job_model: the mapped class of a job table: a handler of a job class is returned only
            if it can run jobs of this model. None by default, for no such check.
        """
        handler = self._handlers.get(job_type)
        if handler is None or handler.job_class is None or job_model is None:
            return handler
        return handler if handler.serves(job_model) else None

    def types(self, job_model: type[Any]) -> Sequence[str] | None:
        """Return the job types of a model that have a handler; None if every type has one.

        :param job_model: the mapped class of a job table.
        """
        return [
            name
            for name, handler in self._handlers.items()
            if handler.job_class is None or handler.serves(job_model)
        ]

    def retry_function(self, job_type: str) -> RetryFunction | None:
        """Return the retry strategy function of ``job_type``, or None if there is none.

        :param job_type: the job type.
        """
        return self._retry_functions.get(job_type)

    def __iter__(self) -> Iterator[Handler[Any, ..., Any]]:
        """Iterate over the registered handlers."""
        return iter(self._handlers.values())
