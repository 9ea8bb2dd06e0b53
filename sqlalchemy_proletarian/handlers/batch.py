"""Batch handlers: functions that run many jobs of one type in one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Protocol,
    TypeVar,
    Unpack,
    overload,
)
from uuid import UUID

from sqlalchemy import Connection

from ..arguments import at_least_one
from ..errors import HandlerError
from ..models.defaults import Job
from ..models.mixins import JobMixin
from ..producer.options import JobObjectOptions, JobOptions, JobT
from .batch_failed import Outcomes
from .handler import Handler, Injected, PayloadT, ReturnT
from .options import DEFAULT_OPTIONS, CheckedOptions
from .signature import Signature, read_signature

if TYPE_CHECKING:
    from ..producer.sessions import AnySession
    from .middleware import Around

LARGEST: Final = 10_000
"""How many jobs a call has at most. The database gets their ids in one statement."""

OutcomesT = TypeVar("OutcomesT", bound=Outcomes | Awaitable[Outcomes])


class BatchHandler(Handler[PayloadT, Injected, ReturnT]):
    """A registered batch handler: its function gets the payloads of many jobs in one call.

    ``@handlers.batch(job_type)`` returns it in place of the decorated function. The payload of
    ``enqueue`` is that of one job.

    :param job_type: the job type.
    :param function: the decorated function.
    :param signature: what the library has read from the signature of ``function``.
    :param options: the checked options of the registration.
    :param job_class: the mapped class of the jobs; None for a handler of payloads.
    :param size: how many jobs a call has at most.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        job_type: str,
        function: Callable[Concatenate[list[PayloadT], Injected], ReturnT],
        signature: Signature,
        options: CheckedOptions = DEFAULT_OPTIONS,
        job_class: type[Any] | None = None,
        *,
        size: int,
    ) -> None:
        called: Callable[..., ReturnT] = function
        super().__init__(job_type, called, signature, options, job_class)
        self.batch_size: int = size  # pyright: ignore[reportIncompatibleVariableOverride]

    def __call__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, payloads: list[PayloadT], *args: Injected.args, **kwargs: Injected.kwargs
    ) -> ReturnT:
        """Call the decorated function directly, for example in a test."""
        called: Callable[..., ReturnT] = self.function
        return called(payloads, *args, **kwargs)

    def wrap(self, around: Around) -> None:
        """Run the function inside middleware.

        :param around: the middleware of the registry.
        :raises HandlerError: if a middleware takes a single job.
        """
        from .middleware import require_lists  # in memory, because there is a middleware

        require_lists(around, self.job_type)
        super().wrap(around)

    if TYPE_CHECKING:
        # As in Handler: for a subclass, mypy ignores the bound of the first overload there.
        @overload
        def enqueue(  # type: ignore[overload-overlap]
            self: BatchHandler[JobT, Injected, ReturnT],
            session: AnySession,
            payload: JobT,
            **options: Unpack[JobObjectOptions],
        ) -> JobT: ...
        @overload
        def enqueue(
            self, session: AnySession, payload: PayloadT, *, job_model: type[JobT], **options: Any
        ) -> JobT: ...
        @overload
        def enqueue(
            self, session: AnySession, payload: PayloadT, **options: Unpack[JobOptions]
        ) -> Job: ...
        @overload
        def enqueue(
            self: BatchHandler[JobT, Injected, ReturnT],
            session: Connection,
            payload: JobT,
            **options: Unpack[JobObjectOptions],
        ) -> Any: ...
        @overload
        def enqueue(
            self,
            session: Connection,
            payload: PayloadT,
            *,
            job_model: type[JobMixin],
            **options: Any,
        ) -> Any: ...
        @overload
        def enqueue(
            self, session: Connection, payload: PayloadT, **options: Unpack[JobOptions]
        ) -> UUID: ...
        def enqueue(self, session: Any, payload: Any, **options: Any) -> Any:
            """Add a job of this handler's type; see :meth:`.Handler.enqueue`."""


@dataclass(frozen=True, slots=True)
class BatchRegistration:
    """The decorator that ``handlers.batch("type")`` returns.

    :param add: adds the handler to its registry.
    """

    job_type: str
    size: int
    namespace: dict[str, Any]
    options: CheckedOptions
    job_class: type[Any] | None
    add: Callable[[Handler[Any, ..., Any]], None]

    def __call__(
        self, function: Callable[Concatenate[list[PayloadT], Injected], OutcomesT]
    ) -> BatchHandler[PayloadT, Injected, OutcomesT]:
        """Register a function.

        :raises HandlerError: if the type has a handler already, or the signature of the function is
            not supported.
        """
        signature = read_signature(
            function, self.job_type, self.namespace, self.job_class, is_batch=True
        )
        handler = BatchHandler(
            self.job_type, function, signature, self.options, self.job_class, size=self.size
        )
        self.add(handler)
        return handler


class ClassBatchRegistration(Protocol[JobT]):
    """The type of ``handlers.batch(JobClass)`` for type checkers."""

    def __call__(  # noqa: D102 - see BatchRegistration
        self, function: Callable[Concatenate[list[JobT], Injected], OutcomesT], /
    ) -> BatchHandler[JobT, Injected, OutcomesT]: ...


def refuse_options_of_one_job(job_type: str, options: CheckedOptions) -> None:
    """Raise :class:`.HandlerError` if an option is given that is not possible for a call."""
    msg = None
    if options.keep_result:
        msg = (
            f"the results of {job_type!r} cannot be kept: a batch handler returns outcomes, not "
            f"results"
        )
    elif options.limit is not None:
        msg = (
            f"the jobs of {job_type!r} cannot be limited: a call of a batch handler runs many at "
            f"once. Use handlers(…) instead of handlers.batch(…)"
        )
    if msg is not None:
        raise HandlerError(msg)


def checked_size(size: int) -> int:
    """Return the size of a batch handler's calls.

    :raises TypeError: if it is not an int.
    :raises ValueError: if it is less than 1 or more than 10,000.
    """
    at_least_one("size", size)
    if size > LARGEST:
        msg = f"size must be at most {LARGEST}, not {size}"
        raise ValueError(msg)
    return size
