"""The limits of a worker's handlers, and the keys of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection

from ..callbacks import call_user_function
from ..errors import LimitKeyError
from ..handlers.handler import Handler
from ..handlers.registry import Handlers
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.limits import Limit, name_of
from ..limits.rules import Named
from ..serializers import Serializer
from ..store.base import Store
from .invoke import decode_payload
from .rows import load_row

_KEYS: Final = (str, int, UUID)
"""The types of keys whose text is the same in every process."""


class HandlerLimits:
    """The limits of the handlers of one worker.

    The key is computed when a job is claimed, so that it does not matter who has enqueued the job.

    :param serializer: decodes the payloads of handlers that have no serializer of their own.
    """

    def __init__(self, store: Store, handlers: Handlers, serializer: Serializer) -> None:
        self._store = store
        self._handlers = handlers
        self._serializer = serializer

    def knows(self, job_type: str) -> bool:
        """Return whether the worker has a handler for a type."""
        return self._find(job_type) is not None

    def limit_of(self, job_type: str) -> Limit | None:
        """Return the limit of a type; None if it has none."""
        handler = self._find(job_type)
        return None if handler is None else handler.limit

    def rates(self) -> Sequence[str]:
        """Return the types that have a rate."""
        return [h.job_type for h in self._handlers if h.limit is not None and h.limit.rate]

    def name(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> Named:
        """Return the names of the places that jobs need."""
        named = Named()
        for job in jobs:
            handler = self._find(job.job_type)
            limit = None if handler is None else handler.limit
            if handler is None or limit is None or limit.concurrency is None:
                continue
            if limit.key is None:
                named.names[job.job_id] = name_of(job.job_type)
                continue
            try:
                value = self._value(connection, handler, job)
            except Exception:  # noqa: S112 - the run meets the error again, and reports it
                continue
            try:
                key = _as_key(call_user_function(limit.key, value), job.job_type)
            except LimitKeyError as error:
                named.errors[job.job_id] = error
            except Exception as error:
                msg = (
                    f"the concurrency_key of {job.job_type!r} raised {error!r} for job {job.job_id}"
                )
                wrong = LimitKeyError(msg)
                wrong.__cause__ = error
                named.errors[job.job_id] = wrong
            else:
                if key is not None:
                    named.names[job.job_id] = name_of(job.job_type, key)
        return named

    def _value(
        self, connection: Connection, handler: Handler[Any, ..., Any], job: ClaimedJob
    ) -> Any:
        """Return what the key is computed from: the payload, or the object of a job class."""
        if not handler.signature.takes_job:
            return decode_payload(handler, job.payload, self._serializer)
        row, error = load_row(self._store, connection, job)
        if row is None:
            raise error or LookupError(job.job_id)
        return row

    def _find(self, job_type: str) -> Handler[Any, ..., Any] | None:
        return self._handlers.find(job_type, self._store.job_model)


def has_limits(handlers: Iterable[Handler[Any, ..., Any]]) -> bool:
    """Return whether a handler has a limit."""
    return any(handler.limit is not None for handler in handlers)


def _as_key(value: object, job_type: str) -> object:
    if value is not None and (not isinstance(value, _KEYS) or value == ""):
        msg = (
            f"the concurrency_key of {job_type!r} must return a string, an integer, a UUID or "
            f"None, not {value!r:.100}"
        )
        raise LimitKeyError(msg)
    return value
