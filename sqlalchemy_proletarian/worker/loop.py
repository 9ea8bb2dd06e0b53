"""What each thread or task of a worker does: poll, wait for work, and survive errors.

A member polls until no job is due. Then one member waits for work: for a commit that announces
jobs, for the next due time, or for the polling interval. The other members wait until they are
called. A member that finds work calls the next one before it runs a handler, so one member is
always waiting for work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from threading import Lock
from time import monotonic, time
from typing import Final

from sqlalchemy import Connection, Engine

from ..clock import Clock
from ..database.connections import cannot_connect, close_own_connection, own_connection
from ..database.server_clock import SharedClock
from ..errors import JobInterruptedError
from ..execution.runner import Runner
from ..runtime.backoff import FIRST_PAUSE, LONGEST_PAUSE, Backoff
from ..runtime.base import GRACE_PERIOD, Flag, Runtime
from ..runtime.doorbell import Doorbell
from ..store.base import Store
from ..telemetry.events import Events
from ..wakeup.announce import DEBOUNCE
from . import paused_queues
from .activity import CALLED, WAITING, WORKING, Activity, Contact
from .paused_queues import PausedQueues

LISTENING_FACTOR: Final = 10
"""How many polling intervals an idle worker waits while commits are announced to it."""

RECHECKS: Final = (DEBOUNCE, 10 * DEBOUNCE, 100 * DEBOUNCE)
"""Seconds between the first polls of a worker that has just become idle. A commit just after the
one that woke it is not announced, and may take its time."""

_AFTER_LOSS: Final = 30.0
"""Seconds after an error in which the server may still hold the locks of a lost connection."""

_POLL_AFTER_LOSS: Final = 5.0
"""Seconds between two polls in that time, at most: nobody announces that the locks are released."""


class Loop:
    """The polling loop that the members of a pool share.

    :param alone: whether the pool has only one member.
    :param paused: which queues are paused.
    :param when_connected: called with each new connection.
    :param when_idle: called with the connection when no job is due.
    :param before_poll: called with the connection before each poll.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        store: Store,
        events: Events,
        runtime: Runtime,
        stopping: Flag,
        identity: str,
        alone: bool,
        polling_interval: float,
        on_polling_error: Callable[[BaseException], object] | None,
        now: Clock,
        shared_time: SharedClock,
        paused: PausedQueues,
        when_connected: Callable[[Connection], object],
        when_idle: Callable[[Connection], object],
        before_poll: Callable[[Connection], object],
    ) -> None:
        self.doorbell: Doorbell = Doorbell(runtime.flag)
        """Rung when there may be work."""
        self.over: Flag = runtime.flag()
        """Set when members must not even finish what they hold."""
        self.is_listening: Callable[[], bool] = lambda: False
        """Returns whether commits of other processes are announced to this worker."""
        self.contact: Contact = Contact()
        """Whether the members reach the database."""
        self.activities: dict[Runner, Activity] = {}
        """What each member is doing."""
        self._engine = engine
        self._store = store
        self._events = events
        self._runtime = runtime
        self._stopping = stopping
        self._identity = identity
        self._alone = alone
        self._polling_interval = polling_interval
        self._on_polling_error = on_polling_error
        self._now = now
        self._shared_time = shared_time
        self._paused = paused
        self._when_connected = when_connected
        self._when_idle = when_idle
        self._before_poll = before_poll
        self._next_member = Doorbell(runtime.flag)
        self._waiting_for_work = Lock()
        self._rechecks = [*RECHECKS]
        self._lost_until = 0.0
        """Until when a lost connection may still have locks, on the monotonic clock."""

    def request_stop(self) -> None:
        """Request that all members end when they have finished what they run."""
        self._stopping.set()
        self.doorbell.ring(everybody=True)
        self._next_member.ring(everybody=True)

    # Until the worker stops.

    def work(self, runner: Runner) -> None:
        """Run jobs until the worker stops."""
        backoff = Backoff(self._stopping)
        activity = self.activities[runner] = Activity()
        try:
            while not self._is_ending(runner):
                activity.doing = WORKING
                activity.step += 1
                try:
                    with self._connected() as connection:
                        # The tables may have changed since the last connection.
                        with connection.begin():
                            self._store.check_tables(connection)
                        self._work_on(connection, runner, backoff, activity)
                except BaseException as error:
                    if self._runtime.is_cancelled():
                        return
                    self._survive(error)
                    _will_wait(activity, LONGEST_PAUSE)
                    if self._stopping.is_set():
                        self.over.wait(FIRST_PAUSE)
                    else:
                        backoff.pause()
        finally:
            if self._runtime.is_cancelled():
                self.request_stop()
                self._leave(runner)

    def _work_on(
        self, connection: Connection, runner: Runner, backoff: Backoff, activity: Activity
    ) -> None:
        """Run jobs and wait for jobs, while the connection can be used."""
        while self._is_usable(connection, runner):
            activity.doing = WORKING
            activity.step += 1
            rings = self.doorbell.rings(), self._next_member.rings()
            self._shared_time.check(connection)
            self._paused.check(connection)
            self._before_poll(connection)
            more = runner.poll(connection)
            backoff.reset()
            if runner.reached:
                self.note_contact()
            if not (more or self._is_ending(runner) or runner.tainted is connection):
                self._when_idle(connection)
                self._wait(runner, activity, *rings)

    def _survive(self, error: BaseException) -> None:
        """Report an error that is not a job's; stop only if the user's callable requests it."""
        self._lost_until = monotonic() + _AFTER_LOSS
        if not self._stopping.is_set():
            self.note_failure(error)
            self._events.emit("polling-error", error)
            if self._events.call(self._on_polling_error, error):
                self.request_stop()
        self._next_member.ring()  # this member may have been the one that waited for work

    # Until no job is due.

    def drain(self, runner: Runner) -> None:
        """Run jobs until none is due."""
        try:
            drained = False
            while not (drained or self._is_ending(runner)):
                with self._connected() as connection:
                    drained = self._drain_on(connection, runner)
        except BaseException:
            self.request_stop()
            self._leave(runner)
            raise

    def _drain_on(self, connection: Connection, runner: Runner) -> bool:
        """Run jobs while the connection can be used; return whether no job is due."""
        while self._is_usable(connection, runner):
            rings = self.doorbell.rings()
            self._shared_time.check(connection)
            self._paused.check(connection)
            self._before_poll(connection)
            more = runner.poll(connection)
            if runner.reached:
                self.note_contact()
            if more:
                continue
            if not runner.busy:
                self._when_idle(connection)
                return True
            self.doorbell.wait(rings, runner.patience())
        return False

    # Waiting for work.

    def found_work(self, more: bool) -> None:
        """Call the next member: to run jobs, too, or to wait for work in place of this one."""
        self.note_claim()
        self._rechecks = [*RECHECKS]
        if not self._alone and (more or not self._waiting_for_work.locked()):
            self._next_member.ring()

    def _wait(self, runner: Runner, activity: Activity, rings: int, calls: int) -> None:
        """Wait for work, or until called by another member."""
        if not self._waiting_for_work.acquire(blocking=False):
            activity.doing = CALLED
            activity.step += 1
            self._next_member.wait(calls)
            return
        try:
            self._events.emit("polling-for-jobs")
            seconds = self._time_to_next_poll(runner)
            if self._rechecks:
                seconds = min(seconds, self._rechecks.pop(0))
            _will_wait(activity, seconds)
            self.doorbell.wait(rings, seconds)
        finally:
            self._waiting_for_work.release()

    def _time_to_next_poll(self, runner: Runner) -> float:
        """Return in how many seconds there may be work that no commit announces."""
        seconds = self._polling_interval
        if runner.next_due.overdue:
            seconds /= 2  # another worker holds the jobs, and its crash would not be announced
            if monotonic() < self._lost_until:  # or a lost connection of this one
                seconds = min(seconds, _POLL_AFTER_LOSS)
        elif self.is_listening():
            seconds *= LISTENING_FACTOR
        if self._paused.paused:  # not every database, nor every client, announces the end
            seconds = min(seconds, paused_queues.INTERVAL)
        if runner.next_due.at is not None:
            seconds = min(seconds, (runner.next_due.at - self._now()).total_seconds())
        if (patience := runner.patience()) is not None:
            seconds = min(seconds, patience)
        return max(seconds, 0.0)

    # What is noted for those who ask how the worker is.

    def note_contact(self) -> None:
        """Note that a poll has reached the database."""
        contact = self.contact
        contact.polled_at = time()
        contact.reached, contact.error = True, None

    def note_claim(self) -> None:
        """Note that a poll has claimed jobs."""
        self.note_contact()
        self.contact.claimed_at = self.contact.polled_at

    def note_failure(self, error: BaseException) -> None:
        """Note that the database could not be used."""
        self.contact.reached = not cannot_connect(error)
        self.contact.error = type(error).__name__

    # Connections, and the end.

    @contextmanager
    def _connected(self) -> Generator[Connection]:
        connection = own_connection(self._engine, self._identity)
        try:
            self._shared_time.check(connection, at_once=True)
            self._when_connected(connection)
            yield connection
        finally:
            close_own_connection(connection)

    def _is_usable(self, connection: Connection, runner: Runner) -> bool:
        lost = connection.invalidated or runner.tainted is connection
        return not (lost or self._is_ending(runner))

    def _is_ending(self, runner: Runner) -> bool:
        return self._stopping.is_set() and (self.over.is_set() or not runner.busy)

    def _leave(self, runner: Runner) -> None:
        """Release at once what a runner holds, because its member ends now."""
        if not runner.busy:
            return
        interrupt([runner])
        until = monotonic() + GRACE_PERIOD
        rings = self.doorbell.rings()
        while any(run.cancel for run in runner.running()) and monotonic() < until:
            self.doorbell.wait(rings, until - monotonic())
            rings = self.doorbell.rings()
        runner.give_up()
        with suppress(Exception), self._connected() as connection:
            runner.poll(connection)


def _will_wait(activity: Activity, seconds: float) -> None:
    activity.until = monotonic() + seconds
    activity.doing = WAITING
    activity.step += 1


def interrupt(runners: Iterable[Runner]) -> bool:
    """Request that all running handlers end; return whether any of them can be cancelled."""
    runs = [run for runner in runners for run in runner.running()]
    for run in runs:
        run.request_end(JobInterruptedError("the worker stopped"))
    return any(run.cancel for run in runs)
