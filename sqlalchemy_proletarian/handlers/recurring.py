"""Recurring jobs in code: what ``@handlers.recurring`` records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, TypeVar, overload

from ..clock import utcnow
from ..errors import HandlerError
from ..models.mixins import JobMixin
from ..periodic.definitions import Definition
from ..periodic.timing import Timing
from ..producer.options import JSON
from ..producer.values import encoded, job_values
from ..serializers.json_serializer import Serializer
from .handler import Handler, Injected, PayloadT, ReturnT, annotated

if TYPE_CHECKING:
    from .batch import BatchHandler

HandlerT = TypeVar("HandlerT", bound="BatchHandler[Any, ..., Any]")


@dataclass(frozen=True, slots=True)
class Declared:
    """A recurring job as it was declared; its payload is encoded when a worker is created."""

    name: str
    timing: Timing
    handler: Handler[Any, ..., Any]
    payload: Any
    queue: str | None
    priority: int | None
    catch_up: str

    def definition(self, job_model: type[JobMixin], serializer: Serializer) -> Definition:
        """Return the definition.

        :param serializer: the worker's, for a handler without one.
        :raises PayloadError: if the payload cannot be encoded.
        """
        handler = self.handler
        serializer = annotated(handler.serializer or serializer, handler.signature)
        values = job_values(
            job_model,
            handler.job_type,
            queue=handler.queue if self.queue is None else self.queue,
            process_at=None,
            process_in=None,
            priority=handler.priority if self.priority is None else self.priority,
            serializer=serializer,
            now=utcnow(),
        )
        return Definition(
            self.name,
            self.timing,
            values["queue"],
            values["job_type"],
            encoded(serializer, self.payload),
            values["priority"],
            self.catch_up,
        )


@dataclass(frozen=True, slots=True)
class RecurringRegistration:
    """The decorator that ``handlers.recurring("name", …)`` returns.

    :param register: makes a handler of a function.
    :param declare: records the recurring job of a handler.
    """

    name: str
    register: Callable[[Callable[..., Any]], Handler[Any, ..., Any]]
    declare: Callable[[Handler[Any, ..., Any]], None]

    @overload
    def __call__(self, function: HandlerT, /) -> HandlerT: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[PayloadT, Injected], ReturnT], /
    ) -> Handler[PayloadT, Injected, ReturnT]: ...
    def __call__(self, function: Any, /) -> Any:
        """Record a recurring job.

        :raises HandlerError: if the jobs of the handler have no payload, or the function cannot be
            a handler.
        """
        handler: Any = function if isinstance(function, Handler) else self.register(function)
        if handler.job_class is not None:
            msg = (
                f"{handler.job_class.__qualname__} cannot be the recurring job {self.name!r}, "
                f"because its data is in columns: make a handler with a payload recurring, and "
                f"enqueue the object in it"
            )
            raise HandlerError(msg)
        self.declare(handler)
        return handler


def definitions_of(
    declared: Iterable[Declared], job_model: type[JobMixin], serializer: Serializer = JSON
) -> list[Definition]:
    """Return the definitions of what was declared; see :meth:`Declared.definition`."""
    return [each.definition(job_model, serializer) for each in declared]
