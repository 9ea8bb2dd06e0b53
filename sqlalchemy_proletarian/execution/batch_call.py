"""Calling the function of a batch handler for several jobs, and deciding what becomes of each.

If the function raises, and does not say for which of its jobs, nobody knows which one is to blame.
The jobs then run again in calls of half as many, at once or after the next claim, and so on. A call
of one job that raises has failed the attempt of that job, as with any other handler. So ``n`` jobs
take at most ``2 n - 1`` calls, and about ``2 log2(n)`` if one of them is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from ..errors import JobInterruptedError, LeaseLostError
from ..handlers.batch_failed import BatchFailed, errors_by_index, require_success
from ..handlers.handler import Handler
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.run import Call, Run
from ..models.job_classes import attach
from ..retry import RetryAfter, Snooze
from ..serializers import Serializer
from .invoke import Invoke, OpenSession, decode_payload, is_unfinished

if TYPE_CHECKING:
    from .observe import RunObserver

_MOST_REMEMBERED: Final = 20_000
"""How many jobs are remembered that must run in smaller calls. Jobs that other workers have
completed since are not removed."""


class BatchCalls:
    """The calls of the batch handlers of one worker.

    :param sizes: how many jobs a call has at most, by job type.
    :param serializer: decodes the payloads of handlers that have no serializer of their own.
    :param invoke: calls the handlers.
    :param starting: called with each job before the function is called.
    :param split: called with a call that raised, and the error, if its jobs run again.
    :param observer: measures the runs; None if nobody asks for that.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        serializer: Serializer,
        invoke: Invoke,
        starting: Callable[[ClaimedJob], object],
        split: Callable[[Call, BaseException], object],
        observer: RunObserver | None = None,
    ) -> None:
        self._sizes = sizes
        self._serializer = serializer
        self._invoke = invoke
        self._starting = starting
        self._report_split = split
        self._around: Callable[[Call], AbstractContextManager[object]] = (
            nullcontext if observer is None else observer.around
        )
        self._most: dict[Any, int] = {}
        """How many jobs a call with a job may have, by its id, after a call that raised."""

    # Which jobs share a call.

    def grouped(self, runs: Sequence[Run]) -> list[Run]:
        """Return the runs in order, with calls in place of the runs of batch handlers."""
        units: list[Run] = []
        for group in self._groups([run.job for run in runs]):
            members = [runs[n] for n in group]
            handler = members[0].handler
            if handler is None or handler.batch_size is None:
                units += members
                continue
            call = Call(members[0].job, handler, runs=members)
            for run in members:
                run.call = run.call or call
            units.append(call)
        return units

    def fitting(self, jobs: Sequence[ClaimedJob], calls: int) -> list[ClaimedJob]:
        """Return the jobs that :meth:`grouped` puts into at most this number of calls."""
        return [jobs[n] for n in sorted(chain.from_iterable(self._groups(jobs, calls)))]

    def _groups(self, jobs: Iterable[ClaimedJob], calls: int | None = None) -> list[list[int]]:
        """Return the indexes of the jobs that share a call; jobs of other handlers are alone.

        :param calls: how many calls there may be; jobs that need another one are left out.
        """
        groups: list[list[int]] = []
        opened: dict[str, tuple[list[int], int]] = {}
        for n, job in enumerate(jobs):
            group, most = opened.get(job.job_type, ([], 0))
            most = min(most, self._most_with(job))
            if len(group) >= most:
                if len(groups) == calls:
                    continue
                group, most = [], self._most_with(job)
                groups.append(group)
            group.append(n)
            opened[job.job_type] = group, most
        return groups

    def _most_with(self, job: ClaimedJob) -> int:
        """Return how many jobs a call with a job may have."""
        size = self._sizes.get(job.job_type)
        if size is None or job.deaths:  # a job during which a worker crashed runs alone
            return 1
        return min(size, self._most.get(job.job_id, size))

    # One call.

    def perform(self, call: Call, open_session: OpenSession) -> None:
        """Call the function once for all runs of a call, and note which of them have failed.

        A run that has ended before, or whose payload cannot be decoded, takes no part.

        :param open_session: opens the session of the call, if the handler takes one.
        :raises Exception: if all that the function wrote must be rolled back.
        """
        payloads = self._payloads_of(call)
        if not call.ready:
            return
        handler: Handler[Any, ..., Any] = call.handler
        call.row = [run.row for run in call.ready]
        if handler.signature.is_async:  # what has been called in a thread cannot be cancelled
            for run in call.ready:
                run.cancel = partial(_cancel, call)
        try:
            with self._around(call):
                self._invoke_in_session(call, payloads, open_session)
        finally:
            for run in call.ready:
                run.cancel = None

    def _invoke_in_session(
        self, call: Call, payloads: list[Any], open_session: OpenSession
    ) -> None:
        if not call.handler.needs_session:
            self._invoke_all(call, payloads, None)
            return
        with open_session(call) as session:
            for run in call.ready:
                if run.row is not None:
                    attach(session, run.row)
            self._invoke_all(call, payloads, session)
            session.flush()

    def _payloads_of(self, call: Call) -> list[Any]:
        """Return the decoded payloads of the runs that are ready."""
        payloads: list[Any] = []
        for run in call.runs:
            try:
                payloads.append(self._payload_of(run))
            except Exception as error:
                call.errors[run] = error
            else:
                call.ready.append(run)
        return payloads

    def _payload_of(self, run: Run) -> Any:
        if run.end_reason is not None:
            raise run.end_reason
        self._starting(run.job)
        if run.row_error is not None:
            raise run.row_error
        return decode_payload(run.handler, run.job.payload, self._serializer)

    def _invoke_all(self, call: Call, payloads: list[Any], session: Any) -> None:
        try:
            self._invoke(call, _checking(call), payloads, session)
        except BatchFailed as failed:
            errors = errors_by_index(failed, len(payloads), call.job.job_type)
            if len(errors) == len(payloads):
                call.errors |= {call.ready[index]: error for index, error in errors.items()}
                raise
            call.errors |= {call.ready[index]: error for index, error in errors.items()}

    # What becomes of its jobs.

    def conclude(self, call: Call, error: Exception | None) -> Sequence[Run]:
        """Complete the errors of a call, and return the runs that are not decided: they run again.

        :param error: what :meth:`perform` raised.
        """
        if error is None or (isinstance(error, BatchFailed) and not call.completing):
            self._forget(call.ready)
            return []
        for run in call.ready:
            call.errors.pop(run, None)
        ended = {run: run.end_reason for run in call.ready if run.end_reason is not None}
        call.errors |= ended
        rest = call.completing
        for_all = isinstance(error, _FOR_ALL) and not isinstance(error, LeaseLostError)
        if for_all or len(call.ready) == 1:
            call.errors |= dict.fromkeys(rest, error)
            self._forget(rest)
            return []
        if not ended:
            self.split(call, error)
        return rest

    def split(self, call: Call, error: BaseException) -> None:
        """Let the jobs of a call that raised run in calls of half as many from now on."""
        ids = [run.job.job_id for run in call.ready]
        self._most.update(dict.fromkeys(ids, (len(ids) + 1) // 2))
        for job_id in list(islice(self._most, max(0, len(self._most) - _MOST_REMEMBERED))):
            self._most.pop(job_id, None)
        self._report_split(call, error)

    def _forget(self, runs: Iterable[Run]) -> None:
        if self._most:
            for run in runs:
                self._most.pop(run.job.job_id, None)


def invoke_alone(invoke: Invoke, run: Run, payload: Any, session: Any) -> None:
    """Call the function of a batch handler for one run, and raise the error of its job.

    :param payload: the decoded payload.
    """
    call = Call(run.job, run.handler, row=[run.row], runs=[run], ready=[run])
    try:
        invoke(call, _checking(call), [payload], session)
    except BatchFailed as failed:
        for error in errors_by_index(failed, 1, run.job.job_type).values():
            raise error from failed


_FOR_ALL: Final = (Snooze, RetryAfter, JobInterruptedError)
"""The exceptions that apply to all jobs of a call."""


def _cancel(call: Call) -> None:
    if call.cancel is not None:
        call.cancel()


def _checking(call: Call) -> Handler[Any, ..., Any]:
    """Return the handler of a call with a function that raises if outcomes say that jobs failed."""
    handler: Handler[Any, ..., Any] = call.handler
    count, job_type = len(call.ready), call.job.job_type
    checking = copy(handler)
    called = handler.function

    async def run_async(payloads: list[Any], **injected: Any) -> None:
        require_success(await called(payloads, **injected), count, job_type)

    def run(payloads: list[Any], **injected: Any) -> Any:
        result = called(payloads, **injected)
        if is_unfinished(result):
            return result
        require_success(result, count, job_type)
        return None

    checking.function = run_async if handler.signature.is_async else run
    return checking
