"""Comparing enqueued jobs with the arguments of an assertion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import inspect as sa_inspect

from ..clock import require_aware
from ..errors import PayloadError
from ..handlers.handler import Handler
from ..models.mixins import JobMixin
from ..serializers.json_serializer import Serializer
from ..serializers.payload_check import inner_parts
from .enqueued_jobs import EnqueuedJob, JobType, decoded, selection

__tracebackhide__ = True  # pytest shows the line of the test instead

ANY_PAYLOAD: Final[Any] = object()
"""The default of ``payload``. None is a payload."""


@dataclass(frozen=True)
class Wanted:
    """The jobs that an assertion is about."""

    job_type: JobType
    name: str
    """The job type or class for messages; empty for every type."""
    model: type[JobMixin]
    serializer: Serializer
    values: Mapping[str, Any]
    """The values that are compared, by name."""
    unencodable: PayloadError | None
    """Why the given payload cannot be encoded."""


def wanted_jobs(
    job_type: JobType,
    *,
    payload: Any,
    queue: str | None,
    process_at: datetime | None,
    process_in: timedelta | None,
    job_model: type[JobMixin],
    serializer: Serializer,
    columns: Mapping[str, Any],
) -> Wanted:
    """Return the arguments of an assertion, checked.

    :raises TypeError: if the model has no such column.
    """
    model, name = selection(job_type, job_model)
    if name is None and isinstance(job_type, type):
        name = job_type.__qualname__
    attributes = sa_inspect(model).attrs.keys()
    for column in columns:
        if column not in attributes:
            msg = (
                f"{column!r} is neither an option nor an attribute of {model.__qualname__}, which "
                f"has {', '.join(sorted(attributes))}"
            )
            raise TypeError(msg)
    values: dict[str, Any] = {}
    unencodable = None
    if payload is not ANY_PAYLOAD:
        try:
            values["payload"] = _there_and_back(payload, job_type, serializer)
        except PayloadError as error:  # it may contain an object that equals others
            values["payload"], unencodable = payload, error
    if queue is not None:
        values["queue"] = queue
    if process_at is not None:
        values["process_at"] = require_aware("process_at", process_at)
    if process_in is not None:
        values["process_in"] = process_in
    return Wanted(job_type, name or "", model, serializer, {**values, **columns}, unencodable)


def _there_and_back(payload: Any, job_type: JobType, serializer: Serializer) -> Any:
    if not isinstance(job_type, Handler):
        return serializer.decode(serializer.encode(payload))
    chosen = job_type.serializer or serializer
    text = chosen.encode(payload, job_type.signature.payload_type or Any)
    return decoded(text, job_type, serializer)


def differences(wanted: Wanted, view: EnqueuedJob[Any]) -> list[str]:
    """Return what differs: names of values, and in the payload the path to the first part."""
    found: list[str] = []
    for name, value in wanted.values.items():
        if name == "payload":
            if place := _first_difference(value, view.payload, "payload"):
                found.append(place)
        elif value_of(view, name) != value:
            found.append(name)
    return found


def value_of(view: EnqueuedJob[Any], name: str) -> Any:
    """Return the value of a job that is compared under a name."""
    if name == "payload":
        return view.payload
    if name == "process_in":
        return view.process_at - view.enqueued_at
    return getattr(view.job, name, None)


def _first_difference(wanted: Any, found: Any, place: str) -> str | None:
    """Return the path to the first part that differs, or None if all parts are equal."""
    if wanted == found:
        return None
    ours, theirs = dict(inner_parts(wanted)), dict(inner_parts(found))
    if not ours.keys() & theirs.keys():
        return place
    for step in [*ours, *(step for step in theirs if step not in ours)]:
        if step not in ours or step not in theirs:
            return place + step
        if (there := _first_difference(ours[step], theirs[step], place + step)) is not None:
            return there
    return None  # a tuple and a list, or objects of a class without __eq__
