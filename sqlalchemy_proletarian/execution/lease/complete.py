"""Completing a leased job in the transaction of its handler's session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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
        """Settle the job of a run.

        :param tainted: whether the handler changed the state of the connection permanently.
        :raises LeaseLostError: if another worker has the lease.
        """
        if not run.advance(RunState.SETTLING):
            if run.state is RunState.LOST:
                raise LeaseLostError(LOST)
            msg = "the worker does not wait for this run any more"
            raise JobInterruptedError(msg)
        try:
            with explained(connection, *self._store.uses):
                result = (run.job, run.success)
                if not self._store.settle_leased(connection, [result], self._now(), wait=True):
                    raise LeaseLostError(LOST)
                if self._markers is not None:
                    self._markers.remove(connection, [run.job])
        except DatabaseNotReadyError as error:
            if tainted:  # the handler changed its role: other jobs can settle
                raise
            self._on_not_ready(error)
            raise Snooze(NOT_ITS_FAULT) from error
