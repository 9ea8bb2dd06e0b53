"""What the threads of a worker do: poll → idle, and how an error that is no job's is survived.

A thread polls until nothing is due. Then one thread watches: it waits for a commit that announces
jobs, for the next due time or for the polling interval, and the others wait until they are called.
Whoever finds work calls the next, before it runs anything, so somebody always watches.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Lock, Thread, current_thread
from time import monotonic

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .announce import DEBOUNCE, channel_of, ring_on_commit
from .batch import Pace
from .connect import own_connection, sever
from .events import Events
from .markers import Markers
from .perform import Batch, Performer
from .store import NOTHING_WAITS, NextDue
from .unit import JobUnit
from .wakeup import Backoff, Doorbell, Listener

LISTENING_FACTOR = 10
"""How many polling intervals an idle worker waits while commits are announced to it."""


@dataclass
class _Desk:
    """What one thread has in its hands."""

    connection: Connection
    batch: Batch = field(default_factory=Batch)
    due: NextDue = NOTHING_WAITS
    given_up: bool = False


class Crew:
    """The threads of one worker, from one start to one stop."""

    def __init__(
        self,
        engine: Engine,
        *,
        make_session: Callable[..., Session],
        performer: Performer,
        markers: Markers | None,
        pace: Pace,
        events: Events,
        name: str,
        polling_interval: float,
        on_polling_error: Callable[[BaseException], object] | None,
        notify: bool,
    ) -> None:
        self.stopping = Event()
        self._engine = engine
        self._make_session = make_session
        self._performer = performer
        self._markers = markers
        self._pace = pace
        self._events = events
        self._name = name
        self._polling_interval = polling_interval
        self._on_polling_error = on_polling_error
        self._notify = notify
        self._listener: Listener | None = None
        self._doorbell = Doorbell()
        self._next_thread = Doorbell()
        self._watching = Lock()
        self._just_worked = True
        self._threads: dict[Thread, Event] = {}
        self._desks: dict[Thread, _Desk] = {}

    def start(self, threads: int) -> None:
        """Start listening and working."""
        if self._notify:
            self._listen()
        for n in range(threads):
            ended = Event()
            name = f"{self._name}-{n}"
            thread = Thread(target=self._run_thread, args=[ended], name=name, daemon=True)
            self._threads[thread] = ended
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        ring_on_commit(self._doorbell)
        if Listener.supports(self._engine):
            self._listener = Listener(
                self._engine,
                channel=channel_of(self._performer.store.table_name),
                queues=self._performer.store.queues,
                name=self._name,
                events=self._events,
                ring=self._doorbell.ring,
            )
            self._listener.start()

    def request_stop(self) -> None:
        """Ask the threads to end after what they are running."""
        self.stopping.set()
        self._doorbell.ring(everybody=True)
        self._next_thread.ring(everybody=True)

    def stop(self, timeout: float) -> list[str]:
        """End the threads; return the names of those that were still running after ``timeout``.

        What those run is rolled back: the server frees the locks when the line is cut.
        """
        self.request_stop()
        if self._listener is not None:
            self._listener.stop()
        deadline = monotonic() + timeout
        for ended in self._threads.values():
            # Not Thread.join: a KeyboardInterrupt in it makes a running thread look dead.
            ended.wait(max(0.0, deadline - monotonic()))
        late = [thread for thread, ended in self._threads.items() if not ended.is_set()]
        for thread in late:
            if desk := self._desks.get(thread):
                # In this order: the next worker must not take it for a death.
                desk.given_up = True
                self._performer.withdraw(desk.batch)
                sever(desk.connection)
        self._close()
        return [thread.name for thread in late]

    def _close(self) -> None:
        if self._markers is not None:
            self._markers.close()

    def drain(self, threads: int) -> int:
        """Run what is due and return how many runs that took."""
        try:
            if threads == 1:
                return self._drain()
            runs: list[int] = []
            errors: list[BaseException] = []

            def drain_one() -> None:
                try:
                    runs.append(self._drain())
                except BaseException as error:  # raised again below, in the caller's thread
                    errors.append(error)

            crew = [Thread(target=drain_one, daemon=True) for _ in range(threads)]
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join()
            if errors:
                raise errors[0]
            return sum(runs)
        finally:
            self._close()

    def _drain(self) -> int:
        runs = 0
        with self._desk() as desk:
            while not self.stopping.is_set():
                batch = self._poll(desk)
                runs += len(batch.results)
                if not batch.claimed:
                    break
        return runs

    # What a thread does.

    def _run_thread(self, ended: Event) -> None:
        try:
            self._work()
        finally:
            ended.set()

    def _work(self) -> None:
        backoff = Backoff(self.stopping)
        while not self.stopping.is_set():
            try:
                with self._desk() as desk:
                    while not self.stopping.is_set():
                        heard = self._doorbell.rings(), self._next_thread.rings()
                        batch = self._poll(desk)
                        backoff.reset()
                        if not batch.claimed:
                            self._idle(desk, *heard)
            except BaseException as error:
                self._survive(error)
                backoff.pause()

    def _poll(self, desk: _Desk) -> Batch:
        """Claim what is due, run and settle it, in one transaction."""
        batch = desk.batch = Batch()
        try:
            with desk.connection.begin():
                self._performer.run_due(self._unit(desk), self._pace, batch, found=self._found)
                if not batch.claimed:
                    desk.due = self._performer.next_due(desk.connection, batch)
        except BaseException as error:
            if not self._mend(desk, error):
                raise
        self._performer.report(batch)
        return batch

    def _mend(self, desk: _Desk, error: BaseException) -> bool:
        """Deal with a transaction that failed; tell whether that was all there is to the error.

        Its jobs run again one by one, but for the one to blame: that one has failed.
        """
        batch = desk.batch
        self._pace.run_alone(batch.claimed)
        if desk.given_up:
            return False
        self._performer.withdraw(batch)
        lost = desk.connection.invalidated or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        )
        if lost or self.stopping.is_set() or isinstance(error, KeyboardInterrupt):
            return False
        if batch.suspect is None:
            together = batch.claimed > 1 and isinstance(error, Exception)
            if together:
                self._events.emit("batch-undone", error, jobs=batch.claimed)
            batch.results, batch.failures = [], []
            return together
        with desk.connection.begin():
            self._performer.blame(self._unit(desk), error, batch)
        return isinstance(error, Exception)

    def _unit(self, desk: _Desk) -> JobUnit:
        return JobUnit(desk.connection, self._make_session)

    def _found(self, more: bool) -> None:
        """Call the next thread: to help, or to watch in place of this one."""
        self._just_worked = True
        if more or not self._watching.locked():
            self._next_thread.ring()

    def _idle(self, desk: _Desk, heard: int, called: int) -> None:
        """Wait for work: watching, or until called."""
        if not self._watching.acquire(blocking=False):
            self._next_thread.wait(called)
            return
        try:
            self._events.emit("polling-for-jobs")
            wait = self._patience(desk)
            if self._just_worked:
                # Commits within a debounce of the one that woke this worker announced nothing.
                self._just_worked, wait = False, min(wait, DEBOUNCE)
            self._doorbell.wait(heard, wait)
        finally:
            self._watching.release()

    def _patience(self, desk: _Desk) -> float:
        """Return how many seconds from now there may be work that nobody announces."""
        wait = self._polling_interval
        if desk.due.overdue:
            wait /= 2  # another worker holds them; if it dies, nobody says so
        elif self._listener is not None and self._listener.active:
            wait *= LISTENING_FACTOR
        if desk.due.at is not None:
            wait = min(wait, (desk.due.at - self._performer.now()).total_seconds())
        return max(wait, 0.0)

    def _survive(self, error: BaseException) -> None:
        """Report an error that is no job's; go on unless the user's callable says to stop."""
        if not self.stopping.is_set():
            self._events.emit("polling-error", error)
            if self._events.call(self._on_polling_error, error):
                self.request_stop()
        self._next_thread.ring()  # this thread may have been the one that watched

    @contextmanager
    def _desk(self) -> Generator[_Desk]:
        connection = own_connection(self._engine, self._name)
        desk = self._desks[current_thread()] = _Desk(connection)
        try:
            yield desk
        finally:
            del self._desks[current_thread()]
            with suppress(DBAPIError):
                connection.close()
