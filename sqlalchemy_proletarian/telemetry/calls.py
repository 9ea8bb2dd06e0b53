"""A call that enqueues, as observers see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

HeadersFunction: TypeAlias = Callable[
    [str, str, Mapping[str, Any] | None], Mapping[str, Any] | None
]
"""Called with a job type, a queue and headers; returns headers."""


@dataclass(slots=True, eq=False)
class EnqueueCall:
    """One call of a function that enqueues, or the tick of a recurring job.

    What is not known before the call is set while it runs.

    .. versionadded:: 0.1
    """

    job_type: str | None = None
    """None until it is known, and for ``enqueue_many``."""
    queue: str | None = None
    """None until it is known, and for ``enqueue_many``."""
    many: bool = False
    """Whether it is a call of ``enqueue_many``."""
    recurring: str | None = None
    """The name of the recurring job, if a worker enqueues the job of its tick."""
    job_id: Any = None
    """None for ``enqueue_many``, if no job was enqueued, and if the database generates the id
    later."""
    enqueued: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """How many jobs were enqueued, by queue and job type. Empty until the call returns, and if
    ``enqueue_unique`` found that the key is taken."""
    with_headers: HeadersFunction = field(
        default=lambda _job_type, _queue, given: given, repr=False
    )
    """Returns the headers of jobs as observers want them; for the library."""

    @property
    def jobs(self) -> int:
        """How many jobs were enqueued."""
        return sum(self.enqueued.values())

    def headers(
        self, job_type: str, queue: str, headers: Mapping[str, Any] | None
    ) -> Mapping[str, Any] | None:
        """Return the headers of jobs that are about to be enqueued, as observers want them.

        :param job_type: the type of the jobs.
        :param queue: their queue.
        :param headers: the headers that the caller passed; None for no headers.
        """
        if not self.many:
            self.job_type, self.queue = job_type, queue
        return self.with_headers(job_type, queue, headers)

    def add_one(self, job_id: Any) -> None:
        """Note that the call has enqueued its job.

        :param job_id: the id of the job.
        """
        self.job_id = job_id
        self.enqueued = {(self.queue or "", self.job_type or ""): 1}
