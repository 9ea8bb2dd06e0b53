"""One job at a time, in a session of yours: for tests and the REPL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from .batch import Pace
from .checks import queue_names, sync_only
from .clock import Clock, utcnow
from .events import Events, LogFunction
from .handlers import Handlers, as_handlers
from .job import JSON
from .models import DEFAULT_QUEUE, ArchivedJob, ArchivedJobMixin, Job, JobMixin
from .perform import Batch, FailedFunction, Performer
from .retry import RetryFunction, RetryLike
from .serializers import Serializer
from .store import Store
from .unit import JobUnit


def process_next_job(
    session: Session,
    handlers: Handlers | Callable[[str, Any], Any],
    *,
    queues: str | Sequence[str] = DEFAULT_QUEUE,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    serializer: Serializer = JSON,
    retry_strategy: RetryFunction | RetryLike | None = None,
    on_failed: FailedFunction | None = None,
    log: LogFunction | None = None,
    clock: Clock = utcnow,
) -> bool | None:
    """Run the next due job in the session's transaction and commit it; for tests and the REPL.

    Works in a session that is joined into an outer transaction, and sees what is pending in it.

    :param session: it is committed, whatever else it holds included.
    :return: True if a job ran, successfully or not; None if nothing was due. (False stands for a
        handler that was interrupted, which no call of this function does.)
    :raises TablesMissingError: if the tables are not there.

    .. versionadded:: 0.1
    """
    performer = Performer(
        Store(job_model, archived_job_model, queue_names(queues)),
        sync_only(as_handlers(handlers)),
        serializer=serializer,
        retry=retry_strategy,
        on_failed=on_failed,
        events=Events(log),
        clock=clock,
        stopping=lambda: False,
    )
    batch = Batch()
    session.flush()
    connection = session.connection(bind_arguments={"mapper": job_model})
    performer.run_due(JobUnit(connection, Session), Pace(1, timedelta(seconds=1)), batch)
    session.commit()
    performer.report(batch)
    return True if batch.results else None
