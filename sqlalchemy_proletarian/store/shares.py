"""Queues that share a worker by weight: which queue comes first in the next claim.

Each queue has a clock that advances by 1/weight with each of its jobs that starts, and the queue
whose clock is behind comes first. So a queue of weight 5 starts five jobs while one of weight 1
starts one, in batches of any size. A queue without claimable jobs leaves its turns to the others
and does not make up for them later: its clock is set forward.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from random import expovariate
from threading import Lock

from ..lifecycle.claimed import ClaimedJob


class QueueShares:
    """The clocks of a worker's queues. All threads of the worker share them.

    :param weights: by queue; positive.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        # Random, so that the first claims of many short-lived workers are shared by weight, too.
        self._clocks: dict[str, float] = {
            queue: expovariate(weight) for queue, weight in weights.items()
        }
        self._lock = Lock()

    def order(self, among: Collection[str]) -> tuple[str, ...]:
        """Return queues in the order in which to claim from them now."""
        with self._lock:
            return tuple(sorted(among, key=self._clocks.__getitem__))

    def claimed(self, order: Sequence[str], jobs: Sequence[ClaimedJob], limit: int) -> None:
        """Take notice of a claim, to set forward the clocks of queues that had too few jobs.

        :param order: the order of the queues in the claim.
        :param jobs: the claimed jobs, in order.
        :param limit: how many jobs were wanted.
        """
        # The claim went on to a later queue only after it had taken all that the earlier ones had.
        last = jobs[-1].queue if jobs and len(jobs) >= limit else None
        left = () if last is None else order[order.index(last) :]
        with self._lock:
            clocks = self._clocks
            now = min(map(clocks.__getitem__, left)) if left else max(clocks.values())
            for queue in clocks.keys() - left:
                clocks[queue] = max(clocks[queue], now)

    def started(self, queue: str) -> None:
        """Count a job that starts."""
        with self._lock:
            self._clocks[queue] += 1 / self._weights[queue]
