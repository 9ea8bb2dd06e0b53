"""The members of a worker, threads or tasks, from one start to one stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy import Engine, Table

from ..errors import JobCancelledError
from ..execution.runner import Runner
from ..runtime.base import GRACE_PERIOD, Flag, Runtime
from ..store.base import Store
from ..telemetry.events import Events
from ..wakeup.announce import ring_on_commit
from ..wakeup.channels import cancel_channel_of, cancelled, channel_of
from ..wakeup.listener import Listener
from .archive_pruning import ArchivePruning
from .loop import Loop, interrupt
from .paused_queues import PausedQueues

if TYPE_CHECKING:
    from ..periodic.service import RecurringService


class WorkerPool:
    """Starts the members of one worker, and stops them.

    :param runners: one for each member.
    :param recurring: enqueues recurring jobs beside the members, or None.
    :param identity: the name of the worker's connections on the server.
    :param paused_table: the table of paused queues, whose changes are announced.
    :param closing: closes what runs beside the members.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        loop: Loop,
        runners: Sequence[Runner],
        recurring: RecurringService | None,
        store: Store,
        stopping: Flag,
        events: Events,
        runtime: Runtime,
        name: str,
        identity: str,
        notify: bool,
        paused: PausedQueues,
        paused_table: Table | None,
        pruning: ArchivePruning | None,
        closing: ExitStack,
    ) -> None:
        self.stopping = stopping
        self.started: bool = False
        """Whether the members have been started."""
        self.draining: bool = False
        """Whether the members end when no job is due."""
        self.runners = runners
        self.listener: Listener | None = None
        self._engine = engine
        self._loop = loop
        self._recurring = recurring
        self._store = store
        self._events = events
        self._runtime = runtime
        self._name = name
        self._identity = identity
        self._notify = notify
        self._paused = paused
        self._paused_table = paused_table
        self._pruning = pruning
        self._closing = closing
        self._ended: list[Flag] = []

    # Start.

    def start(self) -> None:
        """Start listening, the members, and what runs beside them."""
        if self._notify:
            self._listen()
        if self._pruning is not None:
            self._pruning.start()
        for n, runner in enumerate(self.runners):
            self._spawn(self._work, runner, f"{self._name}-{n}")
        self.started = True
        if self._recurring is not None:
            self._recurring.start()

    def _spawn(self, work: Callable[[Runner], object], runner: Runner, name: str) -> None:
        ended = self._runtime.flag()
        self._ended.append(ended)

        def member() -> None:
            try:
                work(runner)
            finally:
                ended.set()

        self._runtime.spawn(member, name)

    def _work(self, runner: Runner) -> None:
        try:
            self._loop.work(runner)
        finally:
            if self._runtime.is_cancelled():  # the event loop ends, and stop() is not called
                self._closing.close()

    def _listen(self) -> None:
        """Be woken by commits: of this process directly, of other processes by LISTEN."""
        doorbell = self._loop.doorbell
        ring_on_commit(doorbell)
        if not Listener.supports(self._engine):
            return
        jobs = channel_of(self._store.table_name)
        pauses = None if self._paused_table is None else channel_of(str(self._paused_table))
        queues = frozenset(self._store.queues)

        def receive(channel: str, payload: str | None) -> None:
            if channel == pauses:
                self._paused.forget()
                doorbell.ring()
            elif channel != jobs:
                self._cancel(payload)
            elif payload is None or payload in queues:
                doorbell.ring()

        listener = self.listener = Listener(
            self._engine,
            channels=(
                jobs,
                cancel_channel_of(self._store.table_name),
                *([] if pauses is None else [pauses]),
            ),
            name=self._identity,
            events=self._events,
            runtime=self._runtime,
            receive=receive,
        )
        self._loop.is_listening = lambda: listener.active
        listener.start()

    def _cancel(self, request: str | None) -> None:
        """Request the end of a run, as another process asked in a notification."""
        job_id, reason = cancelled(request)
        for runner in self.runners:
            for run in runner.held():
                if str(run.job.job_id) == job_id:
                    run.request_end(JobCancelledError(reason))

    # Drain.

    def drain(self) -> int:
        """Run jobs until none is due, and return how many runs that took."""
        self.draining = True
        errors: list[BaseException] = []

        def drain_one(runner: Runner) -> None:
            try:
                self._loop.drain(runner)
            except BaseException as error:  # raised below, in the caller's thread
                errors.append(error)

        try:
            if self._recurring is not None:
                self._recurring.run_once()
            if len(self.runners) == 1:
                self._loop.drain(self.runners[0])
            else:
                for n, runner in enumerate(self.runners):
                    self._spawn(drain_one, runner, f"{self._name}-{n}")
                for ended in self._ended:
                    ended.wait()
        except BaseException:
            self.stop(0)
            raise
        finally:
            self._closing.close()
        if errors:
            raise errors[0]
        return sum(runner.ran for runner in self.runners)

    # Stop.

    def request_stop(self) -> None:
        """Request that the members end when they have finished what they run."""
        self._loop.request_stop()

    def stop(self, timeout: float) -> int:
        """Stop the members; return how many handlers were still running after ``timeout`` seconds.

        Then coroutines are cancelled. The jobs of handlers that do not end are released.
        """
        self.request_stop()
        late = 0
        try:
            if self.listener is not None:
                self.listener.stop()
            if not self._all_ended(timeout):
                can_end = interrupt(self.runners)
                if not (can_end and self._all_ended(GRACE_PERIOD)):
                    late = self._abandon()
        except BaseException as error:
            interrupt(self.runners)
            if not isinstance(error, KeyboardInterrupt):
                raise  # the event loop ends, and its tasks release what they hold
            self._abandon()
            self._end()
            raise
        self._end()
        return late

    def _abandon(self) -> int:
        """Stop waiting for handlers; return how many are still running."""
        working = [
            runner
            for runner, ended in zip(self.runners, self._ended, strict=True)
            if not ended.is_set()
        ]
        late = {id(runner): len(list(runner.running())) for runner in working}

        def give_up(runner: Runner) -> None:
            late[id(runner)] = runner.give_up()

        self._do_in_time(*(partial(give_up, runner) for runner in working))
        if any(runner.busy for runner in working):
            self._all_ended(GRACE_PERIOD)
        return sum(late.values())

    def _end(self) -> None:
        self._loop.over.set()
        self._do_in_time(self._closing.close)

    def _do_in_time(self, *works: Callable[[], object]) -> None:
        """Call functions concurrently, and wait for them, but not for a server that is gone."""
        started: list[Flag] = []

        def do(work: Callable[[], object], ended: Flag) -> None:
            try:
                work()
            finally:
                ended.set()

        for work in works:
            ended = self._runtime.flag()
            try:
                self._runtime.spawn(partial(do, work, ended), f"{self._name}-stop")
            except RuntimeError:  # the interpreter ends, and starts no more threads
                work()
            else:
                started.append(ended)
        _wait_for(started, GRACE_PERIOD)

    def _all_ended(self, timeout: float) -> bool:
        # Not Thread.join(): after a KeyboardInterrupt in it, a running thread looks dead.
        _wait_for(self._ended, timeout)
        return all(ended.is_set() for ended in self._ended)


def _wait_for(flags: Sequence[Flag], timeout: float) -> None:
    deadline = monotonic() + timeout
    for flag in flags:
        flag.wait(max(0.0, deadline - monotonic()))
