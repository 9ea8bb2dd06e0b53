"""Completing a leased job in the transaction of its handler's session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from ...clock import Clock
from ...errors import DatabaseNotReadyError, JobInterruptedError, LeaseLostError
from ...lifecycle.run import Run, RunState
from ...liveness.markers import CrashMarkers
from ...models.requirements import explained
from ...retry import Snooze
from ...store.base import Store
from .settle import NOT_ITS_FAULT

LOST: Final = (
    "the job was not settled before its lease ended: somebody else has it now, or has ended it; "
    "what this run wrote through its session is undone"
)


class Completion:
    """Settles jobs just before the transactions of their handlers' sessions commit.

    :param on_not_ready: called if the database rejects a statement that every job needs.
    """

    def __init__(
        self,
        store: Store,
        markers: CrashMarkers | None,
        now: Clock,
        on_not_ready: Callable[[DatabaseNotReadyError], object],
    ) -> None:
        self._store = store
        self._markers = markers
        self._now = now
        self._on_not_ready = on_not_ready

    def complete(self, run: Run, connection: Connection, tainted: bool) -> None:
        """Settle the job of a run, or all jobs of a call that have succeeded.

        :param tainted: whether the handler changed the state of the connection permanently.
        :raises LeaseLostError: if another worker has a lease; the run of such a call is requested
            to end.
        """
        runs = run.completing
        for each in runs:
            if each.advance(RunState.SETTLING):
                continue
            if each.state is RunState.LOST:
                raise LeaseLostError(LOST)
            msg = "the worker does not wait for this run any more"
            raise JobInterruptedError(msg)
        results = [(each.job, each.success) for each in runs]
        try:
            with explained(connection, *self._store.uses):
                written = self._store.settle_leased(connection, results, self._now(), wait=True)
                if len(written) < len(runs):
                    raise self._lost(runs, written)
                if self._markers is not None:
                    self._markers.remove(connection, [each.job for each in runs])
        except DatabaseNotReadyError as error:
            if tainted:  # the handler changed its role: other jobs can settle
                raise
            self._on_not_ready(error)
            raise Snooze(NOT_ITS_FAULT) from error

    @staticmethod
    def _lost(runs: Sequence[Run], written: set[Any]) -> LeaseLostError:
        error = LeaseLostError(LOST)
        for run in runs:
            if run.job.job_id not in written:
                run.request_end(error)
        return error
