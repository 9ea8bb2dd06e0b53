"""Whether a worker is well: what :meth:`.QueueWorker.health` decides.

Nothing here waits for the database or for a member, and nothing is measured for it while nobody
asks. Members only note what they begin to do (:mod:`.activity`). Whether one of them stands still
is found out by looking again: something that looks the same each time, although it should not, has
stood still in between. One look proves nothing, so a process that was frozen and goes on, or one
that was asked for the first time, is not taken for a broken one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import RLock
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from .activity import CALLED, WAITING, WORKING, Activity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..execution.runner import Runner
    from ..manage.stats import JobCounts
    from .options import WorkerSettings
    from .pool import WorkerPool
    from .queue_watch import QueueWatch

State: TypeAlias = Literal["starting", "running", "stopping", "stopped"]

STANDSTILL: Final = 60.0
"""Seconds for which the event loop may be blocked, or a member may wait for longer than it wanted,
until the worker is not live."""

NO_ANSWER: Final = 15.0
"""Seconds without an answer of the database until it counts as unreachable, and the worker is not
ready. A connection whose other end has vanished is given up after about that time."""

HOPELESS: Final = 600.0
"""Seconds without an answer of the database until the worker is not live. A new process would often
wait for the same lock, and the database is not cured by killing its clients, so they are many."""

LATE_STOP: Final = 30.0
"""Seconds after ``shutdown_timeout`` until a worker that does not stop is not live."""

_MOST_BETWEEN: Final = 0.5
"""The part of a limit that the time between two looks counts at most."""

_LATE: Final = 5.0
"""Seconds by which a member may wait for longer than it wanted."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """The result of :meth:`.QueueWorker.health`.

    .. versionadded:: 0.1
    """

    state: State
    """"starting" until the members run, "running", "stopping" from the request on, or "stopped"."""
    live: bool
    """False if only a new process can help: the worker has stopped, a member has ended, or it has
    made no progress for a long time although it should. A long handler, a database that is down
    and a stop that waits for handlers are no reasons."""
    ready: bool
    """Whether it runs, is live, and reaches the database."""
    last_poll: datetime | None
    """When a poll last reached the database; None if none has."""
    last_claim: datetime | None
    """When a poll last claimed jobs; None if none has."""
    database_reachable: bool
    """Whether the last attempt to use the database has reached it. False before the first one."""
    members: int
    """How many threads or tasks poll: one for each job at a time, or one in lease mode."""
    members_alive: int
    """How many of them have not ended."""
    running: int
    """How many jobs have a handler that runs now."""
    oldest_due: timedelta | None
    """For how long the oldest due job of the worker's queues has been due, as measured in the last
    half minute; None if no job is due, or it is not known."""
    problems: tuple[str, ...] = ()
    """What is wrong, each a short sentence."""


class Checked(Protocol):
    """What is known of a worker whose health is asked for."""

    settings: WorkerSettings
    pool: WorkerPool | None
    """Its members, from a start to a stop."""
    was_started: bool


class HealthCheck:
    """Looks at one worker again and again; any thread may ask."""

    def __init__(self, core: Checked) -> None:
        self._core = core
        self._lock = RLock()
        self._look_at_pool: _PoolCheck | None = None

    def look(self) -> Health:
        """Return how the worker is."""
        with self._lock:
            pool = self._core.pool
            if pool is None:
                self._look_at_pool = None
                return _without_members(stopped=self._core.was_started)
            if self._look_at_pool is None or self._look_at_pool.pool is not pool:
                self._look_at_pool = _PoolCheck(self._core, pool)
            return self._look_at_pool.look()

    def counts(self, patience: float) -> Sequence[JobCounts] | None:
        """Return the numbers of the queues; None if the worker does not run.

        :param patience: how many seconds to wait for the database at the most.
        :raises Exception: if they cannot be counted, or not in time.
        """
        with self._lock:
            if self.look().state != "running" or self._look_at_pool is None:
                return None
            watch = self._look_at_pool.watch()
        return watch.counts(patience)


def _without_members(*, stopped: bool) -> Health:
    return Health(
        state="stopped" if stopped else "starting",
        live=not stopped,
        ready=False,
        last_poll=None,
        last_claim=None,
        database_reachable=False,
        members=0,
        members_alive=0,
        running=0,
        oldest_due=None,
        problems=("the worker has stopped" if stopped else "the worker has not started yet",),
    )


class _Standstill:
    """Adds up for how long something has been seen to stand still.

    :param limit: the seconds of interest. The time between two looks counts in part if it is long.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.seconds = 0.0
        self._seen: object = None
        self._seen_at = 0.0

    def look(self, state: object) -> float:
        """Return the seconds.

        :param state: what is compared with the last look; None if it does not stand still.
        """
        now = monotonic()
        if state is None or state != self._seen:
            self.seconds = 0.0
        else:
            self.seconds += min(now - self._seen_at, _MOST_BETWEEN * self.limit)
        self._seen, self._seen_at = state, now
        return self.seconds

    @property
    def is_too_long(self) -> bool:
        """Whether that is longer than the limit."""
        return self.seconds > self.limit


class _MemberCheck:
    """Looks at one member."""

    def __init__(self) -> None:
        self.waits: _Standstill = _Standstill(STANDSTILL)
        """For how long it waits after the time until which it wanted to wait."""
        self.unanswered: _Standstill = _Standstill(NO_ANSWER)
        """For how long it waits for the database."""
        self.hopeless: _Standstill = _Standstill(HOPELESS)

    def look(self, runner: Runner, activity: Activity) -> None:
        """Find out whether the member gets on. A handler may take as long as it likes."""
        step, doing, until = activity.step, activity.doing, activity.until
        is_late = doing == WAITING and monotonic() > until + _LATE
        works = doing == WORKING and not runner.in_handler
        self.waits.look(step if is_late else None)
        self.unanswered.look(step if works else None)
        self.hopeless.look(step if works else None)


class _PoolCheck:
    """Looks at the members of one start of a worker."""

    def __init__(self, core: Checked, pool: WorkerPool) -> None:
        self.pool = pool
        self._core = core
        self._members = [_MemberCheck() for _ in pool.runners]
        self._ping = 0
        self._pong = 0
        self._blocked = _Standstill(STANDSTILL)
        self._unwatched = _Standstill(STANDSTILL)
        self._stop = _Standstill(core.settings.shutdown_timeout + LATE_STOP)
        self._watch: QueueWatch | None = None

    def look(self) -> Health:
        """Return how the worker is."""
        pool, contact = self.pool, self.pool._loop.contact
        state = self._state()
        # In this order: the flag of a member may be set in between.
        ended = 0 if pool.draining else sum(flag.is_set() for flag in list(pool._ended))
        fatal: list[str] = []
        passing: list[str] = []
        self._ping_event_loop()
        if self._blocked.seconds > NO_ANSWER:
            problem = f"the event loop has been blocked for {self._blocked.seconds:.0f} s"
            (fatal if self._blocked.is_too_long else passing).append(problem)
        if state == "running":
            if ended:
                fatal.append(f"{ended} of {len(pool.runners)} members have ended")
            elif pool.started:
                self._look_at_members(fatal, passing)
        self._stop.look("stopping" if state == "stopping" else None)
        if self._stop.is_too_long:
            fatal.append(f"the worker has been stopping for {self._stop.seconds:.0f} s")
        reachable = contact.reached and not any(m.unanswered.is_too_long for m in self._members)
        if contact.error is not None:
            what = "polling fails" if contact.reached else "the database cannot be reached"
            passing.append(f"{what}: {contact.error}")
        elif state == "running" and not contact.reached:
            passing.append("the database has not been reached yet")
        if state != "running":
            passing.append(f"the worker is {state}")
        return Health(
            state=state,
            live=not fatal,
            ready=state == "running" and reachable and contact.error is None and not fatal,
            last_poll=_time(contact.polled_at),
            last_claim=_time(contact.claimed_at),
            database_reachable=reachable,
            members=len(pool.runners),
            members_alive=len(pool.runners) - ended,
            running=sum(runner.handling() for runner in pool.runners),
            oldest_due=self.watch().oldest_due() if state == "running" else None,
            problems=(*fatal, *passing),
        )

    def _state(self) -> State:
        if self.pool.stopping.is_set():
            return "stopping"
        return "running" if self.pool.started or self.pool.draining else "starting"

    def _ping_event_loop(self) -> None:
        """Find out whether the event loop runs; a thread always answers at once."""
        if self._ping == self._pong:
            self._ping = ping = self._ping + 1

            def answer() -> None:
                self._pong = ping

            self.pool._runtime.call_soon(answer)
        self._blocked.look(None if self._ping == self._pong else self._ping)

    def _look_at_members(self, fatal: list[str], passing: list[str]) -> None:
        activities = self.pool._loop.activities
        doing = []
        steps = []
        for check, runner in zip(self._members, self.pool.runners, strict=True):
            activity = activities.get(runner) or Activity()
            check.look(runner, activity)
            steps.append(activity.step)
            doing.append("handling" if runner.in_handler else activity.doing)
        # A member that waits to be called relies on another one that looks for jobs.
        is_unwatched = CALLED in doing and not {WORKING, WAITING} & {*doing}
        self._unwatched.look(tuple(steps) if is_unwatched else None)
        if self._unwatched.is_too_long:
            fatal.append(f"no member has looked for jobs for {self._unwatched.seconds:.0f} s")
        late = max(self._members, key=lambda member: member.waits.seconds).waits
        if late.is_too_long and not self._blocked.is_too_long:
            fatal.append(f"a poll is {late.seconds:.0f} s late")
        if self._blocked.seconds > NO_ANSWER / 2:
            return  # no answer can arrive
        hopeless = max(self._members, key=lambda member: member.hopeless.seconds).hopeless
        silent = max(self._members, key=lambda member: member.unanswered.seconds).unanswered
        if hopeless.is_too_long:
            fatal.append(f"the database has not answered for {hopeless.seconds:.0f} s")
        elif silent.is_too_long:
            passing.append(f"the database has not answered for {silent.seconds:.0f} s")

    def watch(self) -> QueueWatch:
        """Return what measures the queues, concurrently with the caller."""
        if self._watch is None:
            from .queue_watch import QueueWatch

            pool = self.pool
            name = f"{pool._identity} statistics"
            self._watch = QueueWatch(self._core.settings, pool._store, pool._runtime, name)
            pool._closing.callback(self._watch.stop)
        return self._watch


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
