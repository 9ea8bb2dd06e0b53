"""The options of a handler's registration, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypedDict, get_args

from ..arguments import at_least_one
from ..clock import as_timedelta
from ..lifecycle.limits import Limit, Rate, as_rate
from ..models.values import DEFAULT_PRIORITY, DEFAULT_QUEUE
from ..producer.unique_options import OnConflict, UniqueWhile, require_choice
from ..producer.values import require_name, require_priority
from ..retry import Delay, RetryLike, RetryStrategy, as_strategy
from ..serializers.json_serializer import Serializer


class JobClassOptions(TypedDict, total=False):
    """The options of ``handlers(JobClass)``; they are described in :class:`.HandlerOptions`.

    .. versionadded:: 0.1
    """

    retry: RetryLike | None
    timeout: Delay | None
    max_deaths: int | None
    keep_result: bool | None
    concurrency: int | None
    concurrency_key: Callable[[Any], Any] | None
    rate: str | None


class HandlerOptions(JobClassOptions, total=False):
    """The options of ``handlers("type")``; all of them are optional.

    :param queue: the queue to which ``handler.enqueue`` adds jobs; "default" by default.
    :param priority: the priority of jobs that ``handler.enqueue`` adds, 0 (first) to 9 (last); 5 by
        default.
    :param retry: a :class:`.RetryStrategy` or its mapping form; by default the strategy of the
        registry.
    :param timeout: the longest duration of a run, a timedelta or an int of milliseconds. After it,
        an ``async`` handler is cancelled and the attempt fails with :class:`.JobTimeoutError`. A
        plain function cannot be stopped; the overrun is only reported. No limit by default.
    :param serializer: the serializer of payloads of this type; by default the worker's.
    :param max_deaths: the number of workers in a row that may crash, or lose the lease, while they
        run a job of this type alone; then the job fails with :class:`.WorkerDiedError`. At least
        1; by default the worker's ``max_deaths``.
    :param unique_key: a function that returns the unique key of a payload. ``handler.enqueue`` then
        enqueues as :func:`.enqueue_unique` does. None by default: the jobs have no key.
    :param unique_while: as for :func:`.enqueue_unique`; "running" by default.
    :param on_conflict: as for :func:`.enqueue_unique`; "ignore" by default.
    :param keep_result: whether to store what the handler returns, encoded by the serializer, in the
        archive, where :func:`.result` finds it; False by default. If it cannot be decoded to an
        equal value of the declared return type, the attempt fails with :class:`.PayloadError`.
    :param concurrency: how many jobs of this type run at a time, in all workers together; at least
        1. No limit by default, and 1 with ``concurrency_key``.
    :param concurrency_key: returns the key of a job, by its payload (by the job object, for the
        handler of a job class): a string, an integer or a UUID. ``concurrency`` then limits the
        jobs of each key. A job whose key is None is not limited. If the function raises, the
        attempt of the job fails with :class:`.LimitKeyError`.
    :param rate: how many jobs of this type start in a period, in all workers together, as in
        ``"100/minute"`` or ``"5/10 seconds"``, with second, minute, hour or day. No limit by
        default.

    .. versionadded:: 0.1
    """

    queue: str | None
    priority: int | None
    serializer: Serializer | None
    unique_key: Callable[[Any], str] | None
    unique_while: UniqueWhile | None
    on_conflict: OnConflict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedOptions:
    """The options of a registration after their checks, with their defaults.

    :param timeout: in seconds.
    """

    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    retry: RetryStrategy | None = None
    timeout: float | None = None
    serializer: Serializer | None = None
    max_deaths: int | None = None
    unique_key: Callable[[Any], str] | None = None
    unique_while: UniqueWhile = "running"
    on_conflict: OnConflict = "ignore"
    keep_result: bool = False
    concurrency: int | None = None
    concurrency_key: Callable[[Any], Any] | None = None
    rate: Rate | None = None

    @property
    def limit(self) -> Limit | None:
        """The limits of the type; None if it has none."""
        concurrency = self.concurrency
        if concurrency is None and self.concurrency_key is not None:
            concurrency = 1
        if concurrency is None and self.rate is None:
            return None
        return Limit(concurrency, self.concurrency_key, self.rate)


DEFAULT_OPTIONS: Final = CheckedOptions()

_KNOWN: Final = JobClassOptions.__optional_keys__ | HandlerOptions.__optional_keys__


def check_options(options: Mapping[str, Any]) -> CheckedOptions:
    """Return the options of a registration with their defaults; None stands for the default.

    :raises TypeError: if an option is unknown or of the wrong type.
    :raises ValueError: if a value is out of range.
    """
    if unknown := sorted(options.keys() - _KNOWN):
        msg = (
            f"handlers() has no option {unknown[0]!r}: its options are {', '.join(sorted(_KNOWN))}"
        )
        raise TypeError(msg)
    given = {name: value for name, value in options.items() if value is not None}
    return CheckedOptions(**{name: _checked(name, value) for name, value in given.items()})


def _checked(name: str, value: Any) -> Any:
    match name:
        case "queue":
            require_name(name, value)
        case "priority":
            require_priority(value)
        case "retry":
            return as_strategy(value)
        case "timeout":
            return as_timedelta(name, value, zero=False).total_seconds()
        case "max_deaths" | "concurrency":
            return at_least_one(name, value)
        case "unique_key":
            if not callable(value):
                msg = f"unique_key must be a function of the payload, not {value!r}"
                raise TypeError(msg)
        case "unique_while":
            require_choice(name, value, get_args(UniqueWhile))
        case "on_conflict":
            require_choice(name, value, get_args(OnConflict))
        case "keep_result":
            if not isinstance(value, bool):
                msg = f"keep_result must be True or False, not {value!r}"
                raise TypeError(msg)
        case "concurrency_key":
            if not callable(value):
                msg = f"concurrency_key must be a function of the payload, not {value!r}"
                raise TypeError(msg)
        case "rate":
            return as_rate(value)
    return value
