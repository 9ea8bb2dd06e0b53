"""The options that the functions for enqueueing have in common, and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict, TypeVar

from ..clock import Clock, utcnow, uuid7
from ..models.mixins import JobMixin
from ..serializers.json_serializer import JSONSerializer, Serializer

JobT = TypeVar("JobT", bound=JobMixin)

JSON: JSONSerializer = JSONSerializer()
"""The default serializer."""


class JobObjectOptions(TypedDict, total=False):
    """The options of :func:`.enqueue` for a job that is given as an object of a job class.

    They are described in :class:`.JobOptions`. The values of the object are the defaults of
    ``queue``, ``process_at``, ``priority`` and ``headers``.

    .. versionadded:: 0.1
    """

    queue: str | None
    process_at: datetime | None
    process_in: timedelta | None
    priority: int | None
    uuid_fn: Callable[[], Any]
    clock: Clock
    notify: bool
    headers: Mapping[str, Any] | None


class JobOptions(JobObjectOptions, total=False):
    """The keyword arguments that every function for enqueueing accepts; all of them are optional.

    A function with the same options can declare ``**options: Unpack[JobOptions]``.

    :param queue: the queue's name, 1 to 255 characters. The default is the model's ``__queue__``,
        which is "default" unless the model overrides it.
    :param process_at: an aware datetime; the job does not run before it. A time in the past means
        now. Takes precedence over ``process_in``. The default is now.
    :param process_in: a timedelta; the job does not run until it has elapsed. A negative duration
        means now. None by default.
    :param priority: an int from 0 (first) to 9 (last). The default is the model's
        ``__priority__``, which is 5 unless the model overrides it.
    :param serializer: encodes the payload as text; :class:`.JSONSerializer` by default. The worker
        must use the same serializer.
    :param uuid_fn: a callable that returns the job's id; :func:`.uuid7` by default. Not called if
        the model's ``job_id`` is not a UUID.
    :param clock: a callable that returns the current time as an aware datetime; :func:`.utcnow` by
        default.
    :param notify: whether to wake waiting workers when the transaction commits; True by default.
        Otherwise workers find the job when they poll.
    :param headers: data that travels with the job, such as the context of a trace, a tenant or the
        id of a request: a mapping of strings to JSON values, stored as JSON. It is ``job.headers``
        in handlers and in ``on_failed``, and part of events about the job. None by default; an
        empty mapping is stored as None.

    .. versionadded:: 0.1
    """

    serializer: Serializer


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteOptions:
    """The options of one call, with the defaults of those that were not given."""

    queue: str | None = None
    process_at: datetime | None = None
    process_in: timedelta | None = None
    priority: int | None = None
    serializer: Serializer = JSON
    uuid_fn: Callable[[], Any] = uuid7
    clock: Clock = utcnow
    notify: bool = True
    headers: Mapping[str, Any] | None = None


_DEFAULTS = CompleteOptions()


def split_options(arguments: Mapping[str, Any]) -> tuple[CompleteOptions, dict[str, Any]]:
    """Return the options among keyword arguments, and the other arguments."""
    if not arguments:
        return _DEFAULTS, {}
    names = JobOptions.__optional_keys__
    options = {name: value for name, value in arguments.items() if name in names}
    others = {name: value for name, value in arguments.items() if name not in names}
    return CompleteOptions(**options), others


def only_options(function_name: str, arguments: Mapping[str, Any]) -> CompleteOptions:
    """Return keyword arguments as options.

    :param function_name: the name of the called function, for the error message.
    :raises TypeError: if an argument is not an option.
    """
    options, others = split_options(arguments)
    if others:
        msg = f"{function_name}() got an unexpected keyword argument {next(iter(others))!r}"
        raise TypeError(msg)
    return options
