"""Tests of the order of queues that share a worker by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from sqlalchemy_proletarian.lifecycle.claimed import ClaimedJob
from sqlalchemy_proletarian.store.shares import QueueShares

MOST = 20
weights = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 9), min_size=2)
limits = st.lists(st.integers(1, MOST), min_size=1, max_size=30)


def jobs(queues: list[str]) -> list[ClaimedJob]:
    """Return claimed jobs of queues."""
    return [ClaimedJob(n, "job", "1", 1, queue=queue) for n, queue in enumerate(queues)]


def simulate(
    shares: QueueShares,
    backlog: Mapping[str, int],
    limits: Callable[[int], int],
    starts: int,
    seen: list[str] | None = None,
) -> list[str]:
    """Claim and start jobs until so many have started, or none is left; return their queues."""
    left, started = dict(backlog), [] if seen is None else seen
    claims = 0
    while len(started) < starts:
        limit = limits(claims)
        claims += 1
        order = shares.order(left)
        claimed: list[str] = []
        for queue in order:
            taken = min(left[queue], limit - len(claimed))
            left[queue] -= taken
            claimed += [queue] * taken
        shares.claimed(order, jobs(claimed), limit)
        for queue in claimed:
            shares.started(queue)
        started += claimed
        if not claimed:
            break
    return started


@settings(deadline=None)
@given(weights, limits)
def test_queues_with_jobs_start_jobs_in_the_ratio_of_their_weights(
    weights: dict[str, int], limits: list[int]
) -> None:
    """At any time, no queue is ahead of another by more than its last batch."""
    shares = QueueShares(weights)
    started = simulate(
        shares, dict.fromkeys(weights, 10**6), lambda n: limits[n % len(limits)], 2000
    )
    counts = Counter(started)
    for queue, weight in weights.items():
        for other, other_weight in weights.items():
            ahead = counts[queue] / weight - counts[other] / other_weight
            # The first turns are random, by about one job.
            assert ahead <= (MOST + 20) / weight + 20 / other_weight


@settings(deadline=None)
@given(weights)
def test_the_share_converges(weights: dict[str, int]) -> None:
    """In a long run the ratio is exact, but for a few turns."""
    started = simulate(QueueShares(weights), dict.fromkeys(weights, 10**6), lambda _: 7, 8000)
    for queue, count in Counter(started).items():
        expected = len(started) * weights[queue] / sum(weights.values())
        assert abs(count - expected) < 60


def test_no_queue_waits_longer_than_its_turn() -> None:
    """A queue of little weight starts a job at least once in the sum of the weights."""
    weights = {"critical": 9, "bulk": 1}
    started = simulate(QueueShares(weights), dict.fromkeys(weights, 10**6), lambda _: 1, 2000)
    gaps, gap = [], 0
    for queue in started:
        gap = 0 if queue == "bulk" else gap + 1
        gaps.append(gap)
    assert max(gaps[200:]) <= 9 + 1


def test_an_empty_queue_leaves_its_turns_to_the_others() -> None:
    weights = {"critical": 9, "bulk": 1}
    started = simulate(QueueShares(weights), {"critical": 0, "bulk": 100}, lambda _: 8, 1000)
    assert started == ["bulk"] * 100


def test_an_empty_queue_does_not_make_up_for_its_turns() -> None:
    """After an idle period, a queue gets its share and no more."""
    weights = {"critical": 1, "bulk": 1}
    shares = QueueShares(weights)
    simulate(shares, {"critical": 0, "bulk": 5000}, lambda _: 1, 5000)
    started = Counter(simulate(shares, {"critical": 500, "bulk": 500}, lambda _: 1, 100))
    assert abs(started["critical"] - started["bulk"]) <= 2


def test_a_paused_queue_does_not_make_up_for_its_turns() -> None:
    """A queue that is left out of the claims is like an empty one."""
    shares = QueueShares({"critical": 1, "bulk": 1})
    simulate(shares, {"bulk": 5000}, lambda _: 1, 1000)
    started = Counter(simulate(shares, {"critical": 500, "bulk": 500}, lambda _: 1, 100))
    assert abs(started["critical"] - started["bulk"]) <= 2


def test_claims_whose_jobs_do_not_start_do_not_count() -> None:
    """A claim that is released takes no turn."""
    shares = QueueShares({"critical": 1, "bulk": 1})
    first = shares.order(["critical", "bulk"])[0]
    for _ in range(100):
        order = shares.order(["critical", "bulk"])
        shares.claimed(order, jobs([order[0]]), 1)
    assert shares.order(["critical", "bulk"])[0] == first


def test_the_first_turn_is_random_by_weight() -> None:
    """Workers that run one job each share by weight, too."""
    firsts = Counter(QueueShares({"a": 3, "b": 1}).order("ab")[0] for _ in range(4000))
    assert 2800 < firsts["a"] < 3200
