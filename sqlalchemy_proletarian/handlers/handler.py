"""A handler: the function that runs the jobs of one type, with the options of its registration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeVar,
    Unpack,
    overload,
)
from uuid import UUID

from sqlalchemy import Connection

from ..models.defaults import Job
from ..models.mixins import JobMixin
from ..producer.enqueue import enqueue
from ..producer.options import JSON, JobObjectOptions, JobOptions, JobT
from ..retry import RetryStrategy
from ..serializers.json_serializer import Serializer, check_names
from .options import DEFAULT_OPTIONS, CheckedOptions
from .signature import Signature

if TYPE_CHECKING:
    from ..producer.sessions import AnySession

PayloadT = TypeVar("PayloadT")
Injected = ParamSpec("Injected")
ReturnT = TypeVar("ReturnT")


class Handler(Generic[PayloadT, Injected, ReturnT]):
    """A registered handler: calls its function, and enqueues jobs of its type.

    ``@handlers(job_type)`` returns it in place of the decorated function. The parameters are also
    attributes.

    :param job_type: the job type.
    :param function: the decorated function.
    :param signature: the signature of the function.
    :param options: the options of the registration, which are also attributes; see
        :class:`.HandlerOptions`. ``timeout`` is in seconds.
    :param job_class: the mapped job class whose objects the function takes, or None, the default.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        job_type: str,
        function: Callable[Concatenate[PayloadT, Injected], ReturnT],
        signature: Signature,
        options: CheckedOptions = DEFAULT_OPTIONS,
        job_class: type[Any] | None = None,
    ) -> None:
        self.job_type = job_type
        self.function = function
        self.signature = signature
        self.options = options
        self.job_class = job_class
        self.queue: str = options.queue
        self.priority: int = options.priority
        self.retry: RetryStrategy | None = options.retry
        self.timeout: float | None = options.timeout
        self.serializer: Serializer | None = options.serializer
        self.max_deaths: int | None = options.max_deaths
        self.keep_result: bool = options.keep_result
        self.needs_session: bool = signature.needs_session
        self.needs_job: bool = signature.needs_job
        update_wrapper(self, function, updated=())  # the function's attributes are not copied

    def __call__(
        self, payload: PayloadT, *args: Injected.args, **kwargs: Injected.kwargs
    ) -> ReturnT:
        """Call the decorated function directly, for example in a test."""
        return self.function(payload, *args, **kwargs)

    @overload
    def enqueue(  # type: ignore[overload-overlap]  # a payload is not a job object
        self: Handler[JobT, Injected, ReturnT],
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
        self: Handler[JobT, Injected, ReturnT],
        session: Connection,
        payload: JobT,
        **options: Unpack[JobObjectOptions],
    ) -> Any: ...
    @overload
    def enqueue(
        self, session: Connection, payload: PayloadT, *, job_model: type[JobMixin], **options: Any
    ) -> Any: ...
    @overload
    def enqueue(
        self, session: Connection, payload: PayloadT, **options: Unpack[JobOptions]
    ) -> UUID: ...
    def enqueue(self, session: AnySession | Connection, payload: Any, **options: Any) -> Any:
        """Add a job of this handler's type to the session and return the job.

        With a Connection, insert the job in its transaction and return the ``job_id``.

        Type, queue, priority and serializer are those of the registration, unless an option
        overrides them.

        :param session: as in :func:`.enqueue`.
        :param payload: the payload. For the handler of a job class, an object of that class.
        :param options: the keyword arguments described in :class:`.JobOptions`, ``job_model`` and
            values for the columns that it adds.
        :raises PayloadError: if the payload would not be equal after decoding it to the handler's
            annotation.
        :raises TypeError: if the handler is for a job class and the payload is not one of its
            objects. Other errors are those of :func:`.enqueue`.

        .. versionadded:: 0.1
        """
        if self.job_class is not None:
            if not isinstance(payload, self.job_class):
                msg = f"payload must be a {self.job_class.__qualname__}, not {payload!r:.100}"
                raise TypeError(msg)
            return enqueue(session, payload, **options)
        serializer = options.pop("serializer", None) or self.serializer or JSON
        options = {
            "queue": self.queue,
            "priority": self.priority,
            **options,
            "serializer": annotated(serializer, self.signature),
        }
        return enqueue(session, self.job_type, payload, **options)

    def serves(self, job_model: type[Any]) -> bool:
        """Return whether this handler can run jobs of a model."""
        return self.job_class is None or issubclass(self.job_class, job_model)


def annotated(serializer: Serializer, signature: Signature) -> Serializer:
    """Return a serializer that applies the payload annotation of a handler."""
    return _Annotated(serializer, signature.payload_type)


@dataclass(frozen=True, slots=True)
class _Annotated:
    """A serializer that applies the payload annotation of one handler."""

    serializer: Serializer
    payload_type: Any

    def encode(self, payload: Any, annotation: Any = None) -> str:
        return self.serializer.encode(payload, annotation or self.payload_type or Any)

    def decode(self, text: str, annotation: Any = None) -> Any:
        return self.serializer.decode(text, annotation or self.payload_type)

    def check_names(self, *, queue: str, job_type: str) -> None:
        check_names(self.serializer, queue=queue, job_type=job_type)
