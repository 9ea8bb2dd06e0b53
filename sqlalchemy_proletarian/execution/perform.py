"""Running the handler of one job, in either way to hold jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection
from sqlalchemy import inspect as sa_inspect

from ..errors import JobInterruptedError, PayloadError
from ..handlers.handler import Handler
from ..handlers.registry import Handlers
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.outcomes import Succeeded
from ..lifecycle.run import Run
from ..models.job_classes import attach, class_of
from ..producer.values import encoded
from ..retry import Discard
from ..serializers import Serializer
from ..store.base import Store
from .invoke import Invoke, OpenSession, decode_payload
from .report import Reporter
from .rows import is_error_of_row, load_row

if TYPE_CHECKING:
    from ..store.shares import QueueShares
    from .batch_call import BatchCalls
    from .observe import RunObserver


class JobExecutor:
    """Finds the handlers of claimed jobs and runs them.

    :param serializer: decodes the payloads of handlers that have no serializer of their own.
    :param invoke: calls the handlers.
    :param observer: measures the runs; None if nobody asks for that.
    """

    def __init__(
        self,
        store: Store,
        handlers: Handlers,
        *,
        serializer: Serializer,
        invoke: Invoke,
        reporter: Reporter,
        observer: RunObserver | None = None,
    ) -> None:
        self.perform: Callable[[Run, OpenSession], None] = self._perform
        """Runs a job's handler until it ends; a call is for :attr:`calls`. The second argument
        opens the handler's session, if the handler takes one. Raises an Exception if the attempt
        did not succeed."""
        if observer is not None:
            self.perform = partial(_observed, observer, self._perform)
        self._observer = observer
        self._store = store
        self._handlers = handlers
        self._serializer = serializer
        self._invoke = invoke
        self._split = reporter.split
        self._starting: Callable[[ClaimedJob], object] = reporter.starting
        if store.shares is not None:
            self._starting = partial(_start_counted, store.shares, reporter)

    @property
    def batch_sizes(self) -> Mapping[str, int]:
        """How many jobs a call of a batch handler has at most, by job type."""
        return self._handlers.batch_sizes

    @cached_property
    def calls(self) -> BatchCalls:
        """The calls of batch handlers."""
        # A worker without batch handlers does not need them in memory.
        from .batch_call import BatchCalls

        return BatchCalls(
            self._handlers.batch_sizes,
            serializer=self._serializer,
            invoke=self._invoke,
            starting=self._starting,
            split=self._split,
            observer=self._observer,
        )

    def grouped(self, runs: Sequence[Run]) -> list[Run]:
        """Return what to :meth:`perform` one after the other: runs, and calls of batch handlers."""
        return self.calls.grouped(runs) if self._handlers.batch_sizes else list(runs)

    def prepare(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> list[Run]:
        """Return a run for each job, with its handler, and its row if the handler asks for it."""
        runs = [Run(job, self._handlers.find(job.job_type, self._store.job_model)) for job in jobs]
        wanted = [run for run in runs if run.handler is not None and run.handler.needs_job]
        if wanted:
            self._load(connection, wanted)
        return runs

    def _load(self, connection: Connection, runs: list[Run]) -> None:
        try:
            rows = self._store.rows.load(connection, [run.job for run in runs])
        except Exception as error:
            if not is_error_of_row(error):
                raise
            for run in runs:  # one row has invalid values: it must not fail the other jobs
                run.row, run.row_error = load_row(self._store, connection, run.job)
        else:
            for run in runs:
                run.row = rows.get(run.job.job_id)
        for run in runs:
            if run.row is None and run.row_error is None:
                model = class_of(self._store.job_model, run.job.job_type)
                run.row_error = Discard(
                    f"the job is no complete {model.__qualname__}: its row in "
                    f"{sa_inspect(model).local_table} is missing"
                )

    def _perform(self, run: Run, open_session: OpenSession) -> None:
        if run.end_reason is not None:
            raise run.end_reason
        handler: Handler[Any, ..., Any] | None = run.handler
        if handler is None:
            msg = f"no handler is registered for {run.job.job_type!r}"
            raise JobInterruptedError(msg)
        self._starting(run.job)
        if run.row_error is not None:
            raise run.row_error
        payload = decode_payload(handler, run.job.payload, self._serializer)
        if not handler.needs_session:
            result = self._invoke(run, handler, payload, None)
            if handler.keep_result:
                self._keep(run, result)
            return
        with open_session(run) as session:
            if run.row is not None:
                attach(session, run.row)
            result = self._invoke(run, handler, payload, session)
            if handler.keep_result:  # in the block, at whose end the job may complete
                self._keep(run, result)

    def _keep(self, run: Run, result: Any) -> None:
        run.success = Succeeded(encode_result(run.handler, result, self._serializer))


def encode_result(handler: Handler[Any, ..., Any], result: Any, serializer: Serializer) -> str:
    """Return the result of a handler as text, from which an equal one can be decoded.

    :param serializer: for a handler that has no serializer of its own.
    :raises PayloadError: if that is not possible; the message names the part at fault.
    """
    chosen = handler.serializer or serializer
    annotation = handler.signature.return_type or Any
    try:
        return encoded(chosen, result, annotation)
    except PayloadError as error:
        # Serializers call what they encode "payload".
        place = str(error).replace("the handler's payload", "what the handler returns")
        place = f"result{place.removeprefix('payload')}" if place.startswith("payload") else place
        msg = f"the handler of {handler.job_type!r} returned what cannot be kept: {place}"
        raise PayloadError(msg) from error.__cause__


def _observed(
    observer: RunObserver,
    perform: Callable[[Run, OpenSession], None],
    run: Run,
    open_session: OpenSession,
) -> None:
    with observer.around(run):
        perform(run, open_session)


def _start_counted(shares: QueueShares, reporter: Reporter, job: ClaimedJob) -> None:
    """Report that a job starts, and count it for the share of its queue."""
    reporter.starting(job)
    shares.started(cast("str", job.queue))


def set_errors(runs: Iterable[Run], errors: Mapping[Any, Exception]) -> None:
    """Let the runs of these jobs fail when they start.

    :param errors: the errors by job id.
    """
    for run in runs if errors else ():
        if run.row_error is None:
            run.row_error = errors.get(run.job.job_id)
