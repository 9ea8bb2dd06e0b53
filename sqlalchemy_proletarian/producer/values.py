"""The column values of a new job's row, and the checks of the arguments they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ..arguments import is_storable
from ..clock import require_aware
from ..errors import PayloadError
from ..models.headers import checked_headers
from ..models.job_classes import require_type
from ..models.mixins import JobMixin
from ..models.values import PRIORITIES
from ..serializers.json_serializer import Serializer, check_names
from ..telemetry.calls import EnqueueCall
from .facts import facts_of

MAX_NAME_LENGTH = 255


def job_values(
    job_model: type[JobMixin],
    job_type: str,
    *,
    queue: str | None,
    process_at: datetime | None,
    process_in: timedelta | None,
    priority: int | None,
    serializer: Serializer,
    now: datetime,
    headers: Mapping[str, Any] | None = None,
    call: EnqueueCall | None = None,
) -> dict[str, Any]:
    """Return the checked column values of a new job's row, without ``job_id`` and ``payload``.

    :param now: the current time; earlier values of ``process_at`` are raised to it.
    :param call: what observers see of the call that enqueues; None without observers.
    :raises PayloadError: if the headers cannot be stored.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if a time is naive, if a name or the priority is out of range, if
        ``job_model`` is not the class of this job type, or if the serializer rejects a name.
    """
    queue = job_model.__queue__ if queue is None else queue
    priority = job_model.__priority__ if priority is None else priority
    require_name("job_type", job_type)
    if facts_of(job_model).is_polymorphic:
        require_type(job_model, job_type)
    require_name("queue", queue)
    check_names(serializer, queue=queue, job_type=job_type)
    require_priority(priority)
    values = {
        "queue": queue,
        "job_type": job_type,
        "attempts": 0,
        "enqueued_at": now,
        "process_at": due_time(now, process_at, process_in),
        "priority": priority,
        "deaths": 0,
    }
    if call is not None:
        headers = call.headers(job_type, queue, headers)
    # Only where there are some: rows of the usual columns take a shorter way.
    if headers is not None and (checked := checked_headers(headers)):
        values["headers"] = checked
    return values


def call_of(job_type: Any, job_model: Any, options: Mapping[str, Any]) -> EnqueueCall:
    """Return what observers see of a call, from its arguments, which have not been checked."""
    if isinstance(job_type, JobMixin):
        job_model, job_type = job_type, None
    queue = options.get("queue") or getattr(job_model, "__queue__", None)
    return EnqueueCall(
        job_type if isinstance(job_type, str) else None, queue if isinstance(queue, str) else None
    )


def due_time(now: datetime, process_at: datetime | None, process_in: timedelta | None) -> datetime:
    """Return when a job is due: not earlier than now, and now if neither argument is given.

    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if ``process_at`` is naive, or the date is out of range.
    """
    due = now
    if process_at is not None:
        due = require_aware("process_at", process_at)
    elif process_in is not None:
        due = _later(now, process_in)
    return max(due, now)


def encoded(serializer: Serializer, payload: Any, annotation: Any = None) -> str:
    """Return a payload as text that databases can store.

    :param annotation: as for the serializer.

    :raises PayloadError: if the payload cannot be encoded.
    :raises TypeError: if the serializer does not return a string.
    """
    text: Any = serializer.encode(payload, annotation) if annotation else serializer.encode(payload)
    if not isinstance(text, str):
        msg = f"the serializer must return a payload as str, not {text!r:.80}"
        raise TypeError(msg)
    if not is_storable(text):
        msg = "the serializer returned text with a NUL or a lone surrogate, which cannot be stored"
        raise PayloadError(msg)
    return text


def _later(now: datetime, process_in: timedelta) -> datetime:
    if not isinstance(process_in, timedelta):
        msg = f"process_in must be a timedelta, not {process_in!r}"
        raise TypeError(msg)
    try:
        return now + process_in
    except OverflowError as error:
        msg = f"process_in leads to a date out of range: {process_in!r}"
        raise ValueError(msg) from error


def require_name(name: str, value: str) -> None:
    """Check that ``value`` is a valid name of a queue or a job type, or a valid unique key.

    :param name: the name of the argument in error messages.
    :raises TypeError: if ``value`` is not a string.
    :raises ValueError: if it does not have 1 to 255 characters, or contains a NUL or a lone
        surrogate.
    """
    if not isinstance(value, str):
        msg = f"{name} must be a string, not {value!r}"
        raise TypeError(msg)
    if not 0 < len(value) <= MAX_NAME_LENGTH or not is_storable(value):
        msg = (
            f"{name} must have 1 to {MAX_NAME_LENGTH} characters, no NUL and no lone surrogate, "
            f"not {value!r:.100}"
        )
        raise ValueError(msg)


def require_key(columns: Mapping[str, Any]) -> None:
    """Check the value of ``unique_key`` among column values, if there is one.

    :raises TypeError: if it is not a string.
    :raises ValueError: if its length is out of range, or it cannot be stored.
    """
    if columns.get("unique_key") is not None:
        require_name("unique_key", columns["unique_key"])


def require_priority(priority: int) -> None:
    """Check that ``priority`` is an int from 0 to 9.

    :raises TypeError: if it is not an int.
    :raises ValueError: if it is out of range.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        msg = f"priority must be an int, not {priority!r}"
        raise TypeError(msg)
    if priority not in PRIORITIES:
        msg = f"priority must be from 0 (first) to 9 (last), not {priority}"
        raise ValueError(msg)
