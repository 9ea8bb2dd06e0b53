"""What observers see of calls that enqueue."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .events import logger
from .observers import Observer, current_observers, shielded


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
    _observers: tuple[Observer, ...] = ()

    @property
    def jobs(self) -> int:
        """How many jobs were enqueued."""
        return sum(self.enqueued.values())

    def headers(
        self, job_type: str, queue: str, headers: Mapping[str, Any] | None
    ) -> Mapping[str, Any] | None:
        """Return the headers of jobs that are about to be enqueued, as observers want them."""
        if not self.many:
            self.job_type, self.queue = job_type, queue
        for observer in self._observers:
            try:
                headers = observer.enqueuing(job_type, queue, headers)
            except Exception:
                _report(observer)
        return headers

    def add_one(self, job_id: Any) -> None:
        """Note that the call has enqueued its job."""
        self.job_id = job_id
        self.enqueued = {(self.queue or "", self.job_type or ""): 1}


@contextmanager
def observed(call: EnqueueCall) -> Generator[EnqueueCall]:
    """Let all observers see a call, which runs in the block."""
    call._observers = current_observers()
    with ExitStack() as stack:
        for observer in call._observers:
            make = partial(observer.around_enqueue, call)
            stack.enter_context(shielded(make, partial(_report, observer)))
        yield call


def _report(observer: Observer, _error: object = None) -> None:
    logger.exception("the observer %r raised while a job was enqueued", observer)
