"""Taking places: which of the jobs that were claimed may run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from ..clock import Clock
from ..store.places import Place, PlaceTable


@dataclass
class Taken:
    """The places that a transaction has locked."""

    numbers: dict[str, list[int]] = field(default_factory=dict)
    """By name; a name without any free place is missing."""
    created: set[str] = field(default_factory=set)
    """The names whose rows this transaction has created. Others cannot see them yet."""


class Places:
    """Takes the places of one table.

    :param leased: whether the worker holds jobs by leases. Its transactions then end at once.
        Otherwise a transaction that has created rows must not run a job: others would wait for it
        that create the same rows.
    """

    def __init__(self, table: PlaceTable, now: Clock, *, leased: bool) -> None:
        self._table = table
        self._now = now
        self._leased = leased

    def take(
        self, connection: Connection, wanted: Mapping[str, tuple[int, int]], shared_time: Clock
    ) -> Taken:
        """Lock free places, and return them.

        :param wanted: by name, the number of places that there are, and how many are wanted.
        """
        taken = Taken()
        shared = shared_time()
        known = self._table.known(connection, wanted, shared)
        missing = _missing(known, {name: limit for name, (limit, _) in wanted.items()})
        if missing:
            self._table.create(connection, missing, self._now())
            taken.created = {name for name, _ in missing}
            if self._leased:  # the transaction is short: nobody waits for it
                for name, number in missing:
                    known[name][number] = False
        rows = self._lock(connection, wanted, known, taken)
        for row in self._table.free_of_leases(connection, rows, shared):
            taken.numbers.setdefault(row.name, []).append(row.number)
        return taken

    def _lock(
        self,
        connection: Connection,
        wanted: Mapping[str, tuple[int, int]],
        known: Mapping[str, Mapping[int, bool]],
        taken: Taken,
    ) -> list[Place]:
        rows: list[Place] = []
        single: list[str] = []
        for name, (limit, most) in wanted.items():
            if name in taken.created and not self._leased:
                continue
            numbers = [n for n, leased in known[name].items() if n <= limit and not leased]
            if numbers == [1]:
                single.append(name)
            elif numbers:
                rows += self._table.lock(connection, name, numbers, most)
        if single:
            rows += self._table.lock_single(connection, single)
        return rows

    def free(self, connection: Connection, name: str, limit: int, shared: Clock) -> int:
        """Return how many places of a name are free now."""
        known = self._table.known(connection, [name], shared())[name]
        existing = [n for n in known if n <= limit]
        numbers = [n for n in existing if not known[n]]
        free = self._table.probe(connection, name, numbers) if numbers else 0
        return limit - len(existing) + free


def _missing(known: Mapping[str, Mapping[int, bool]], limits: Mapping[str, int]) -> list[Place]:
    return [
        (name, number)
        for name, limit in limits.items()
        if len(known[name]) < limit
        for number in range(1, limit + 1)
        if number not in known[name]
    ]


def wanted_of(
    names: Sequence[str], limits: Mapping[str, int], *, shared: bool
) -> dict[str, tuple[int, int]]:
    """Return what :meth:`Places.take` has to take.

    :param names: the names of the jobs, in which a name may occur several times.
    :param limits: how many places each name has.
    :param shared: whether jobs that run one after the other share one place.
    """
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = 1 if shared else counts.get(name, 0) + 1
    return {name: (limits[name], min(count, limits[name])) for name, count in counts.items()}
