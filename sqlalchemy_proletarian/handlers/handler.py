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
from sqlalchemy.orm import Session, scoped_session

from ..lifecycle.limits import Limit
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
    from ..producer.unique_options import OnConflict, UniqueWhile
    from ..unique.conflicts import Enqueued
    from .middleware import Around

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

    batch_size: int | None = None
    """How many jobs a call of the function has at most; None if it is called for each job."""

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
        self.limit: Limit | None = options.limit
        self.needs_session: bool = signature.needs_session
        self.needs_job: bool = signature.needs_job
        self.around: Around | None = None
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
        overrides them. If the handler is registered with a ``unique_key``, this is
        :meth:`enqueue_unique`, and returns the job that has the key, new or not.

        :param session: as in :func:`.enqueue`. With a ``unique_key``, statements are sent, so it
            must not be an AsyncSession: call ``await session.run_sync(handler.enqueue, payload)``.
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
        if self.options.unique_key is not None:
            return self.enqueue_unique(session, payload, **options).job  # type: ignore[arg-type]
        return enqueue(session, self.job_type, payload, **self._with_own(options))

    @overload
    def enqueue_unique(
        self,
        session: Session | scoped_session[Any],
        payload: PayloadT,
        *,
        unique_key: str | None = ...,
        unique_while: UniqueWhile | None = ...,
        on_conflict: OnConflict | None = ...,
        job_model: type[JobT],
        **options: Any,
    ) -> Enqueued[JobT]: ...
    @overload
    def enqueue_unique(
        self,
        session: Session | scoped_session[Any],
        payload: PayloadT,
        *,
        unique_key: str | None = ...,
        unique_while: UniqueWhile | None = ...,
        on_conflict: OnConflict | None = ...,
        **options: Unpack[JobOptions],
    ) -> Enqueued[Job]: ...
    @overload
    def enqueue_unique(
        self,
        session: Connection,
        payload: PayloadT,
        *,
        unique_key: str | None = ...,
        unique_while: UniqueWhile | None = ...,
        on_conflict: OnConflict | None = ...,
        job_model: type[JobMixin],
        **options: Any,
    ) -> Enqueued[Any]: ...
    @overload
    def enqueue_unique(
        self,
        session: Connection,
        payload: PayloadT,
        *,
        unique_key: str | None = ...,
        unique_while: UniqueWhile | None = ...,
        on_conflict: OnConflict | None = ...,
        **options: Unpack[JobOptions],
    ) -> Enqueued[UUID]: ...
    def enqueue_unique(
        self,
        session: Session | scoped_session[Any] | Connection,
        payload: Any,
        *,
        unique_key: str | None = None,
        unique_while: UniqueWhile | None = None,
        on_conflict: OnConflict | None = None,
        **options: Any,
    ) -> Enqueued[Any]:
        """Enqueue a job of this handler's type, unless its queue has a job with the same key.

        In asyncio, call ``await session.run_sync(handler.enqueue_unique, payload)``, which also
        exists for an AsyncConnection.

        :param session: a Session, scoped_session or Connection.
        :param payload: the payload.
        :param unique_key: the key; by default that of the registration.
        :param unique_while: as for :func:`.enqueue_unique`; by default that of the registration.
        :param on_conflict: as for :func:`.enqueue_unique`; by default that of the registration.
        :param options: as for :meth:`enqueue`.
        :return: as :func:`.enqueue_unique`.
        :raises TypeError: if the handler has no ``unique_key`` and none is given, or it is for a
            job class. Other errors are those of :func:`.enqueue_unique`, and of the function that
            returns the key.

        .. versionadded:: 0.1
        """
        from ..unique.enqueue import enqueue_unique  # few processes need it

        if not isinstance(session, Session | scoped_session | Connection):
            msg = (
                f"a unique job is enqueued with statements, which need a Session or Connection, "
                f"not {type(session).__qualname__}: in asyncio, call "
                f"`await session.run_sync(handler.enqueue, payload)`"
            )
            raise TypeError(msg)
        if self.job_class is not None:
            msg = (
                f"a {self.job_class.__qualname__} has no payload: call enqueue_unique() of "
                f"sqlalchemy_proletarian with job_model={self.job_class.__qualname__}"
            )
            raise TypeError(msg)
        if unique_key is None:
            if self.options.unique_key is None:
                msg = (
                    f"the handler of {self.job_type!r} has no unique_key: pass one, or register "
                    f"the handler with a function that returns it"
                )
                raise TypeError(msg)
            unique_key = self.options.unique_key(payload)
        result: Enqueued[Any] = enqueue_unique(
            session,
            self.job_type,
            payload,
            unique_key=unique_key,
            unique_while=self.options.unique_while if unique_while is None else unique_while,
            on_conflict=self.options.on_conflict if on_conflict is None else on_conflict,
            **self._with_own(options),
        )
        return result

    def _with_own(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return options with those of the registration for those that are not given."""
        serializer = options.pop("serializer", None) or self.serializer or JSON
        return {
            "queue": self.queue,
            "priority": self.priority,
            **options,
            "serializer": annotated(serializer, self.signature),
        }

    def wrap(self, around: Around) -> None:
        """Run the function inside middleware.

        :param around: the middleware of the registry.
        """
        self.around = around
        self.needs_session = self.signature.needs_session or around.needs_session
        self.needs_job = self.signature.needs_job or around.needs_job

    def serves(self, job_model: type[Any]) -> bool:
        """Return whether this handler can run jobs of a model.

        :param job_model: the mapped class of a job table.
        """
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
