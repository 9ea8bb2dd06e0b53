"""Deciding which claimed jobs may run, in either way to hold jobs.

A claim knows nothing of limits. The jobs that it returns are locked; those for which there is no
place are parked (:mod:`..store.waiting`), together with those behind them that wait for the same
place. So each of them is read once, and not again at each claim.

When a place has become free, the worker that held it lets the next jobs be due. It does so after
its commit, and a worker that has parked jobs looks for a free place after its own commit: the later
of the two sees what the other one did. If a worker is killed before that, :mod:`.look` finds the
jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection

from ..clock import Clock
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.limits import Rate, rate_name
from ..store.places import PlaceTable
from ..store.waiting import WaitingJobs
from .look import Look
from .places import Places, wanted_of
from .rates import Granted, RateStarts, StartConnection
from .rules import LimitRules

_READ_AHEAD: Final = (50, 200, 1000)
"""How many due jobs are read to park those that wait for the same limit. More, if the last time at
least half of them did: reading them takes time, and other workers skip them meanwhile."""

_DELAY: Final = timedelta(seconds=1)
"""The delay of a job that cannot be parked: its worker crashed, and its row says so."""

ClaimMore: TypeAlias = Callable[[int], Sequence[ClaimedJob]]
"""Claims due jobs in the same transaction, those that are claimed already included."""


@dataclass
class Admission:
    """Which jobs of one transaction may run, and what it did with the others."""

    jobs: Sequence[ClaimedJob]
    """The jobs that may run."""
    errors: Mapping[Any, Exception] = field(default_factory=dict)
    """Why jobs cannot run whose key could not be determined, by job id."""
    names: dict[Any, str] = field(default_factory=dict)
    """The names of the places that the jobs hold, by job id."""
    numbers: dict[str, list[int]] = field(default_factory=dict)
    """The places that the transaction has locked, by name."""
    granted: dict[str, Granted] = field(default_factory=dict)
    """The last answer to the request for a start, by job type."""
    unstarted: list[ClaimedJob] = field(default_factory=list)
    """The jobs whose rate does not allow a start."""
    parked: set[str] = field(default_factory=set)
    """The names for which jobs were parked."""
    again: bool = False
    """Whether to commit and claim again, because something was prepared."""


class Limiter:
    """The limits of one worker, shared by its members.

    :param leased: whether the worker holds jobs by leases.
    :param starts: records starts in transaction mode.
    """

    def __init__(
        self,
        rules: LimitRules,
        *,
        table: PlaceTable,
        waiting: WaitingJobs,
        look: Look,
        leased: bool,
        now: Clock,
        shared_time: Clock,
        starts: StartConnection | None,
    ) -> None:
        self._rules = rules
        self._table = table
        self._waiting = waiting
        self._look = look
        self._leased = leased
        self._shared_time = shared_time
        self._starts = starts
        self._places = Places(table, now, leased=leased)
        self._rates = RateStarts(table, now, shared_time)
        self._held: dict[Any, str] = {}
        self._may_start: dict[Any, Granted] = {}
        self._step = 0

    # In the transaction that claims.

    def admit(
        self,
        connection: Connection,
        jobs: Sequence[ClaimedJob],
        claim_more: ClaimMore,
        shared: datetime | None = None,
    ) -> Admission | None:
        """Take places for claimed jobs, and park those for which there is none.

        :param shared: the time by which leases have expired; now by default.
        :return: None if no job has a limit.
        """
        limits = {job.job_type: self._rules.limit_of(job.job_type) for job in jobs}
        if not any(limits.values()):
            return None
        named = self._rules.name(connection, [job for job in jobs if not job.ended_as])
        admission = Admission(jobs, named.errors)
        if not named.names:
            return admission
        types = {named.names[job.job_id]: job.job_type for job in jobs if job.job_id in named.names}
        most = {name: self._concurrency(job_type) for name, job_type in types.items()}
        wanted = wanted_of(list(named.names.values()), most, shared=not self._leased)
        time = self._shared_time if shared is None else lambda: shared
        taken = self._places.take(connection, wanted, time)
        admission.numbers = taken.numbers
        self._choose(admission, named.names, created=set() if self._leased else taken.created)
        full = {
            name
            for job_id, name in named.names.items()
            if job_id not in admission.names and (self._leased or name not in taken.created)
        }
        if full:
            self._park(connection, jobs, admission, named.names, full=full, claim_more=claim_more)
        if not self._leased and (full or taken.created):
            admission.again, admission.jobs, admission.names = True, (), {}
        return admission

    def _concurrency(self, job_type: str) -> int:
        limit = self._rules.limit_of(job_type)
        return 1 if limit is None or limit.concurrency is None else limit.concurrency

    def _choose(self, admission: Admission, names: Mapping[Any, str], *, created: set[str]) -> None:
        """Keep the jobs that have a place, or need none."""
        room = {name: len(numbers) for name, numbers in admission.numbers.items()}
        kept: list[ClaimedJob] = []
        for job in admission.jobs:
            name = names.get(job.job_id)
            if name is None:
                kept.append(job)
            elif name not in created and room.get(name, 0):
                room[name] -= self._leased  # otherwise they run one after the other
                kept.append(job)
                admission.names[job.job_id] = name
        admission.jobs = kept

    def _park(
        self,
        connection: Connection,
        jobs: Sequence[ClaimedJob],
        admission: Admission,
        names: Mapping[Any, str],
        *,
        full: set[str],
        claim_more: ClaimMore,
    ) -> None:
        """Park the jobs that wait for these places, and those that are due behind them."""
        kept = {job.job_id for job in admission.jobs}
        more = self._read_ahead(claim_more)
        found = {**self._rules.name(connection, more).names, **names}
        waiting = {
            job.job_id: job
            for job in (*jobs, *more)
            if found.get(job.job_id) in full and job.job_id not in kept
        }
        self._set_aside(connection, waiting.values(), {each: found[each] for each in waiting})
        self._adapt(len(waiting))
        admission.parked = full

    def _read_ahead(self, claim_more: ClaimMore) -> list[ClaimedJob]:
        return [job for job in claim_more(_READ_AHEAD[self._step]) if not job.ended_as]

    def _adapt(self, parked: int) -> None:
        """Read more next time if many jobs were parked, and fewer otherwise."""
        many = parked >= _READ_AHEAD[self._step] / 2
        self._step = min(self._step + 1, len(_READ_AHEAD) - 1) if many else 0

    def _set_aside(
        self, connection: Connection, jobs: Collection[ClaimedJob], names: Mapping[Any, str]
    ) -> None:
        marked = {job.job_id for job in jobs if job.expired or job.marked}
        self._waiting.park(
            connection, {job_id: name for job_id, name in names.items() if job_id not in marked}
        )
        at = self._shared_time() + _DELAY
        for expired in (True, False):
            ids = [job.job_id for job in jobs if job.job_id in marked and job.expired is expired]
            self._waiting.delay(connection, ids, at, leased=expired)

    # Starts.

    def start(self, job: ClaimedJob, admission: Admission) -> bool:
        """Return whether a job may start now; a start is recorded if its type has a rate."""
        rate = self._rate(job.job_type)
        if rate is None or self._starts is None:
            return True
        granted = admission.granted.get(job.job_type)
        if granted is None or granted.count:
            granted = self._starts.reserve(self._rates, job.job_type, rate)
            admission.granted[job.job_type] = granted
        if granted.count and not self._rates.is_late(granted):
            return True
        admission.unstarted.append(job)
        return False

    def start_leased(
        self,
        connection: Connection,
        jobs: Sequence[ClaimedJob],
        admission: Admission,
        claim_more: ClaimMore,
    ) -> list[ClaimedJob]:
        """Record the starts of jobs that are about to be leased; return those that may start."""
        by_type: dict[str, int] = Counter(job.job_type for job in jobs)
        room: dict[str, int] = {}
        for job_type, wanted in by_type.items():
            rate = self._rate(job_type)
            if rate is None:
                room[job_type] = wanted
            else:
                granted = self._rates.reserve(connection, job_type, rate, wanted)
                admission.granted[job_type] = granted
                room[job_type] = granted.count
        started: list[ClaimedJob] = []
        for job in jobs:
            if room[job.job_type]:
                room[job.job_type] -= 1
                started.append(job)
            else:
                admission.unstarted.append(job)
        others = [job.job_id for job in started]
        self.park_unstarted(connection, admission, claim_more, others)
        return started

    def may_start(self, job: ClaimedJob) -> bool:
        """Return whether it is not too late to start a leased job."""
        granted = self._may_start.pop(job.job_id, None)
        return granted is None or not self._rates.is_late(granted)

    def park_unstarted(
        self,
        connection: Connection,
        admission: Admission,
        claim_more: ClaimMore,
        others: Iterable[Any],
    ) -> None:
        """Park the jobs whose rate does not allow a start, and those that are due behind them.

        :param others: the ids of the jobs of the transaction that have started, or are about to.
        """
        if not admission.unstarted:
            return
        types = {job.job_type for job in admission.unstarted}
        jobs = {job.job_id: job for job in admission.unstarted}
        kept = set(others)
        for job in self._read_ahead(claim_more):
            if job.job_type in types and job.job_id not in kept:
                jobs.setdefault(job.job_id, job)
        names = {job.job_id: rate_name(job.job_type) for job in jobs.values()}
        self._set_aside(connection, jobs.values(), names)
        self._adapt(len(jobs))
        for job_type in types:
            granted = admission.granted[job_type]
            at = self._shared_time() if granted.count else granted.next_at
            self._look.look_at(rate_name(job_type), at)

    def _rate(self, job_type: str) -> Rate | None:
        limit = self._rules.limit_of(job_type)
        return None if limit is None else limit.rate

    def record(
        self, connection: Connection, leased: Iterable[ClaimedJob], admission: Admission
    ) -> None:
        """Record the leases that hold the locked places."""
        holders: dict[tuple[str, int], tuple[Any, Any]] = {}
        for job in leased:
            name = admission.names.get(job.job_id)
            if name is not None:
                number = admission.numbers[name].pop()
                holders[name, number] = job.job_id, job.lease_id
                self._held[job.job_id] = name
            if (granted := admission.granted.get(job.job_type)) is not None:
                self._may_start[job.job_id] = granted
        self._table.record(connection, holders)

    # After the commit.

    def let_go(self, job_ids: Iterable[Any]) -> Counter[str]:
        """Return how many places of each name were held by leased jobs that have ended."""
        freed: Counter[str] = Counter()
        for job_id in job_ids:
            self._may_start.pop(job_id, None)
            name = self._held.pop(job_id, None)
            if name is not None:
                freed[name] += 1
        return freed

    def after_commit(
        self,
        connection: Connection,
        *,
        freed: Mapping[str, int],
        parked: Iterable[str] = (),
    ) -> bool:
        """Let the next jobs be due; return whether there were any.

        :param freed: the names of places that have become free, with how many jobs to release.
        :param parked: the names for which jobs were parked.
        """
        return self._look.hand_over(connection, freed, parked)

    def check(self, connection: Connection) -> None:
        """Look for waiting jobs that nobody has released, if it is time for it."""
        self._look(connection)

    def patience(self) -> float | None:
        """Return the number of seconds until the next job may start that waits for a rate."""
        return self._look.patience()
