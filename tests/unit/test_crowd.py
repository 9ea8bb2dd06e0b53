"""How long an idle worker waits when a commit wakes many workers at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text

from sqlalchemy_proletarian.worker.crowd import Crowd


class Listeners:
    """A connection to a database on which a number of workers listen."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked = 0

    @contextmanager
    def begin(self) -> Iterator[None]:
        yield

    def scalar(self, _statement: object) -> int:
        self.asked += 1
        return self.number


def longest(crowd: Crowd) -> float:
    return max(crowd.wait() for _ in range(200))


def in_vain(crowd: Crowd, connection: Any, times: int) -> None:
    for _ in range(times):
        crowd.found_nothing(connection)


def test_a_worker_alone_never_waits() -> None:
    crowd, alone = Crowd(text("")), Listeners(1)
    in_vain(crowd, alone, 100)
    assert longest(crowd) == 0


def test_two_workers_wait_a_few_milliseconds() -> None:
    crowd, two = Crowd(text("")), Listeners(2)
    in_vain(crowd, two, 100)
    assert 0.005 < longest(crowd) <= 0.02


def test_many_workers_spread_their_looks_over_half_a_second() -> None:
    crowd, many = Crowd(text("")), Listeners(50)
    in_vain(crowd, many, 100)
    assert 0.2 < longest(crowd) <= 0.5
    assert many.asked == 1


def test_a_worker_that_has_found_jobs_looks_at_once() -> None:
    crowd, many = Crowd(text("")), Listeners(50)
    in_vain(crowd, many, 100)
    crowd.in_vain = 0
    assert longest(crowd) == 0
    in_vain(crowd, many, 1)
    assert longest(crowd) <= 0.02


def test_without_notifications_nobody_is_counted() -> None:
    crowd, many = Crowd(None), Listeners(50)
    in_vain(crowd, many, 100)
    assert longest(crowd) == 0
    assert many.asked == 0
