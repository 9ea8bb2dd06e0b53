"""What the members of a worker do: poll → idle, and how an error that is no job's is survived.

Members are threads or tasks. One polls until nothing is due. Then one member watches: it waits for
a commit that announces jobs, for the next due time or for the polling interval, and the others wait
until they are called. Whoever finds work calls the next, before it runs anything, so somebody
always watches.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import partial
from threading import Lock
from time import monotonic

from sqlalchemy import Connection, Engine

from ..clock import Clock
from ..database.connections import let_go, own_connection
from ..database.server_clock import SharedClock
from ..errors import JobCancelledError, JobInterruptedError
from ..execution.runner import Desk
from ..runtime.doorbell import FIRST_PAUSE, Backoff, Doorbell, Flag
from ..runtime.threads import Waiting
from ..store.base import Store
from ..telemetry.events import Events
from ..wakeup.announce import DEBOUNCE, ring_on_commit
from ..wakeup.channels import cancel_channel_of, cancelled, channel_of
from ..wakeup.listener import Listener

LISTENING_FACTOR = 10
"""How many polling intervals an idle worker waits while commits are announced to it."""

LOOKS = (DEBOUNCE, 10 * DEBOUNCE, 100 * DEBOUNCE)
"""Seconds between looks for more work, when a worker that has worked finds none."""

PARTING = 1.0
"""Seconds that handlers which were cancelled have to end, and their jobs to be settled."""


class Crew:
    """The members of one worker, from one start to one stop.

    :param new_desk: makes a desk for each member; called with the crew.
    :param members: how many there are.
    :param identity: what the server calls their connections (``application_name``).
    :param show: shows others that the worker lives, from then until ``close``.
    :param tidy: called when nothing is due, to do what is not urgent.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        new_desk: Callable[[Crew], Desk],
        members: int,
        store: Store,
        stopping: Flag,
        events: Events,
        waiting: Waiting,
        name: str,
        identity: str,
        polling_interval: float,
        on_polling_error: Callable[[BaseException], object] | None,
        notify: bool,
        now: Clock,
        shared_time: SharedClock,
        show: Callable[[], object],
        tidy: Callable[[Connection], object],
        close: Callable[[], object],
    ) -> None:
        self.stopping = stopping
        self.doorbell = Doorbell(waiting.flag)
        self._engine = engine
        self._store = store
        self._events = events
        self._waiting = waiting
        self._name = name
        self._identity = identity
        self._polling_interval = polling_interval
        self._on_polling_error = on_polling_error
        self._notify = notify
        self._now = now
        self._shared_time = shared_time
        self._show = show
        self._tidy = tidy
        self._close = close
        self._listener: Listener | None = None
        self._next_member = Doorbell(waiting.flag)
        self._watching = Lock()
        self._looks = [*LOOKS]
        self._over: Flag = waiting.flag()
        self._desks = [new_desk(self) for _ in range(members)]
        self._ended: list[Flag] = []

    # Its life.

    def start(self) -> None:
        """Start listening and working."""
        if self._notify:
            self._listen()
        for n, desk in enumerate(self._desks):
            self._spawn(self._work, desk, f"{self._name}-{n}")

    def _spawn(self, work: Callable[[Desk], object], desk: Desk, name: str) -> None:
        ended = self._waiting.flag()
        self._ended.append(ended)

        def member() -> None:
            try:
                work(desk)
            finally:
                ended.set()

        self._waiting.spawn(member, name)

    def _listen(self) -> None:
        ring_on_commit(self.doorbell)
        if not Listener.supports(self._engine):
            return
        jobs = channel_of(self._store.table_name)
        queues = frozenset(self._store.queues)

        def heard(channel: str, payload: str | None) -> None:
            if channel != jobs:
                self._cancel(payload)
            elif payload is None or payload in queues:
                self.doorbell.ring()

        self._listener = Listener(
            self._engine,
            channels=(jobs, cancel_channel_of(self._store.table_name)),
            name=self._identity,
            events=self._events,
            waiting=self._waiting,
            heard=heard,
        )
        self._listener.start()

    def _cancel(self, request: str | None) -> None:
        job_id, reason = cancelled(request)
        for desk in self._desks:
            for run in desk.held():
                if str(run.job.job_id) == job_id:
                    run.ask(JobCancelledError(reason))

    def request_stop(self) -> None:
        """Ask the members to end after what they are running."""
        self.stopping.set()
        self.doorbell.ring(everybody=True)
        self._next_member.ring(everybody=True)

    def stop(self, timeout: float) -> int:
        """End the members; return how many handlers were still running after ``timeout``.

        Coroutines are cancelled then. What those run that do not end is rolled back or given back.
        """
        self.request_stop()
        late = 0
        try:
            if self._listener is not None:
                self._listener.stop()
            if not self._all_ended(timeout):
                can_end = self._interrupt(self._desks)
                if not (can_end and self._all_ended(PARTING)):
                    late = self._abandon()
        except BaseException as error:  # nobody waits for them any longer
            self._interrupt(self._desks)
            if not isinstance(error, KeyboardInterrupt):
                raise  # the event loop ends, and its tasks give back what they hold
            self._abandon()
            self._end()
            raise
        self._end()
        return late

    def _end(self) -> None:
        self._over.set()
        self._soon(self._close)

    def _interrupt(self, desks: Iterable[Desk]) -> bool:
        """Ask what runs to end; tell whether any of it can be made to."""
        runs = [run for desk in desks for run in desk.running()]
        for run in runs:
            run.ask(JobInterruptedError("the worker stopped"))
        return any(run.cancel for run in runs)

    def _abandon(self) -> int:
        working = [
            desk for desk, ended in zip(self._desks, self._ended, strict=True) if not ended.is_set()
        ]
        late = {id(desk): len(list(desk.running())) for desk in working}

        def give_up(desk: Desk) -> None:
            late[id(desk)] = desk.give_up()

        self._soon(*(partial(give_up, desk) for desk in working))
        if any(desk.busy for desk in working):
            self._all_ended(PARTING)
        return sum(late.values())

    def _soon(self, *works: Callable[[], object]) -> None:
        """Do all of that, and wait for it, but not for a server that has vanished."""
        done: list[Flag] = []

        def do(work: Callable[[], object], ended: Flag) -> None:
            try:
                work()
            finally:
                ended.set()

        for work in works:
            ended = self._waiting.flag()
            try:
                self._waiting.spawn(partial(do, work, ended), f"{self._name}-parting")
            except RuntimeError:  # the interpreter ends, and starts no more threads
                work()
            else:
                done.append(ended)
        deadline = monotonic() + PARTING
        for ended in done:
            ended.wait(max(0.0, deadline - monotonic()))

    def _all_ended(self, timeout: float) -> bool:
        # Not Thread.join: a KeyboardInterrupt in it makes a running thread look dead.
        deadline = monotonic() + timeout
        for ended in self._ended:
            ended.wait(max(0.0, deadline - monotonic()))
        return all(ended.is_set() for ended in self._ended)

    def drain(self) -> int:
        """Run what is due and return how many runs that took."""
        errors: list[BaseException] = []

        def drain_one(desk: Desk) -> None:
            try:
                self._drain(desk)
            except BaseException as error:  # raised again below, in the caller's thread
                errors.append(error)

        try:
            if len(self._desks) == 1:
                self._drain(self._desks[0])
            else:
                for n, desk in enumerate(self._desks):
                    self._spawn(drain_one, desk, f"{self._name}-{n}")
                for ended in self._ended:
                    ended.wait()
        except BaseException:
            self.stop(0)
            raise
        finally:
            self._close()
        if errors:
            raise errors[0]
        return sum(desk.ran for desk in self._desks)

    # What a member does.

    def _drain(self, desk: Desk) -> None:
        try:
            drained = False
            while not (drained or self._leaving(desk)):
                with self._connected() as connection:
                    drained = self._drain_on(connection, desk)
        except BaseException:
            self.request_stop()
            self._part(desk)
            raise

    def _drain_on(self, connection: Connection, desk: Desk) -> bool:
        """Run what is due, while the connection serves; tell whether nothing is left."""
        while not (self._leaving(desk) or connection.invalidated or desk.tainted is connection):
            heard = self.doorbell.rings()
            self._shared_time.look(connection)
            if desk.poll(connection):
                continue
            if not desk.busy:
                self._tidy(connection)
                return True
            self.doorbell.wait(heard, desk.patience())
        return False

    def _work(self, desk: Desk) -> None:
        backoff = Backoff(self.stopping)
        try:
            while not self._leaving(desk):
                try:
                    with self._connected() as connection:
                        # Before a handler runs in vain: much may have changed since the last one.
                        with connection.begin():
                            self._store.check_tables(connection)
                        self._work_on(connection, desk, backoff)
                except BaseException as error:
                    if self._waiting.ending():
                        return
                    self._survive(error)
                    if self.stopping.is_set():
                        self._over.wait(FIRST_PAUSE)
                    else:
                        backoff.pause()
        finally:
            if self._waiting.ending():
                self.request_stop()
                self._part(desk)
                self._close()  # nobody else will

    def _work_on(self, connection: Connection, desk: Desk, backoff: Backoff) -> None:
        """Work and wait for work, while the connection serves."""
        while not (self._leaving(desk) or connection.invalidated or desk.tainted is connection):
            heard = self.doorbell.rings(), self._next_member.rings()
            self._shared_time.look(connection)
            more = desk.poll(connection)
            backoff.reset()
            if not (more or self._leaving(desk) or desk.tainted is connection):
                self._tidy(connection)
                self._idle(desk, *heard)

    def _leaving(self, desk: Desk) -> bool:
        return self.stopping.is_set() and (self._over.is_set() or not desk.busy)

    def _part(self, desk: Desk) -> None:
        """Give back at once what a desk holds that is being left in a hurry."""
        if not desk.busy:
            return
        self._interrupt([desk])
        until = monotonic() + PARTING
        heard = self.doorbell.rings()
        while any(run.cancel for run in desk.running()) and monotonic() < until:
            self.doorbell.wait(heard, until - monotonic())
            heard = self.doorbell.rings()
        desk.give_up()
        with suppress(Exception), self._connected() as connection:
            desk.poll(connection)

    def found(self, more: bool) -> None:
        """Note that a member has found work; call the next one: to help, or to watch instead."""
        self._looks = [*LOOKS]
        if more or not self._watching.locked():
            self._next_member.ring()

    def _idle(self, desk: Desk, heard: int, called: int) -> None:
        """Wait for work: watching, or until called."""
        if not self._watching.acquire(blocking=False):
            self._next_member.wait(called)
            return
        try:
            self._events.emit("polling-for-jobs")
            wait = self._patience(desk)
            if self._looks:
                # Commits just after the one that woke this worker announced nothing, and may take
                # their time.
                wait = min(wait, self._looks.pop(0))
            self.doorbell.wait(heard, wait)
        finally:
            self._watching.release()

    def _patience(self, desk: Desk) -> float:
        """Return how many seconds from now there may be work that nobody announces."""
        wait = self._polling_interval
        if desk.due.overdue:
            wait /= 2  # another worker holds them; if it dies, nobody says so
        elif self._listener is not None and self._listener.active:
            wait *= LISTENING_FACTOR
        if desk.due.at is not None:
            wait = min(wait, (desk.due.at - self._now()).total_seconds())
        if (patience := desk.patience()) is not None:
            wait = min(wait, patience)
        return max(wait, 0.0)

    def _survive(self, error: BaseException) -> None:
        """Report an error that is no job's; go on unless the user's callable says to stop."""
        if not self.stopping.is_set():
            self._events.emit("polling-error", error)
            if self._events.call(self._on_polling_error, error):
                self.request_stop()
        self._next_member.ring()  # this member may have been the one that watched

    @contextmanager
    def _connected(self) -> Generator[Connection]:
        connection = own_connection(self._engine, self._identity)
        try:
            self._shared_time.look(connection, at_once=True)
            self._show()
            yield connection
        finally:
            let_go(connection)
