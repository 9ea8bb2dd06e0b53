"""The options that select jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Any, Final

import click

from ..manage import JobState
from ..models.values import Status
from .values import duration

QUEUED: Final = ["queued", *(state.value for state in JobState)]
ARCHIVED: Final = ["archived", *(status.value for status in Status)]


@dataclass(frozen=True)
class Filters:
    """The values of the options."""

    status: tuple[str, ...]
    queue: str | None
    job_type: str | None
    older_than: timedelta | None
    newer_than: timedelta | None
    limit: int | None

    @property
    def any_given(self) -> bool:
        """Whether a filter was given; a limit is none."""
        return bool(
            self.status or self.queue or self.job_type or self.older_than or self.newer_than
        )

    def arguments(self, default: str, limit: int | None = None) -> dict[str, Any]:
        """Return the arguments of ``list_jobs``.

        :param default: the status if none was given.
        :param limit: overrides the one of the options.
        """
        status: Any = self.status or (default,)
        if len(status) == 1:
            status = status[0]
        return {
            "status": status,
            "queue": self.queue,
            "job_type": self.job_type,
            "older_than": self.older_than,
            "newer_than": self.newer_than,
            "limit": limit or self.limit,
        }

    def __str__(self) -> str:
        """Return the filters in words, as they follow "jobs"."""
        parts = []
        if self.queue:
            parts.append(f"in queue {self.queue}")
        if self.job_type:
            parts.append(f"of type {self.job_type}")
        return "".join(f" {part}" for part in parts)


def filter_options(
    default_limit: int | None = None, statuses: Sequence[str] = (*QUEUED, *ARCHIVED)
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options; their values are the parameter ``filters``.

    :param statuses: the statuses that can be given.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(*args: Any, **options: Any) -> Any:
            names = Filters.__dataclass_fields__
            given = {name: options.pop(name) for name in names}
            return command(*args, filters=Filters(**given), **options)

        options = [
            click.option("--queue", "-q", metavar="NAME", help="Only jobs of this queue."),
            click.option(
                "--type", "-t", "job_type", metavar="TYPE", help="Only jobs of this type."
            ),
            click.option(
                "--status",
                "-s",
                multiple=True,
                type=click.Choice(statuses),
                help="Only jobs with this status; can be repeated.",
            ),
            click.option(
                "--older-than",
                type=duration,
                metavar="DURATION",
                help="Only jobs enqueued (or ended, if archived) at least this long ago: 30m, 7d.",
            ),
            click.option(
                "--newer-than",
                type=duration,
                metavar="DURATION",
                help="Only jobs enqueued (or ended, if archived) at most this long ago.",
            ),
            click.option(
                "--limit",
                "-n",
                type=click.IntRange(1, 10_000) if default_limit else click.IntRange(1),
                default=default_limit,
                show_default=default_limit is not None,
                help="The maximum number of jobs.",
            ),
        ]
        for option in reversed(options):
            run = option(run)
        return run

    return decorate
