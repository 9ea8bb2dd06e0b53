"""The clock of the test kit, and the library's default clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from threading import Thread
from typing import Any

import pytest

from sqlalchemy_proletarian import utcnow
from sqlalchemy_proletarian.clock import checked_clock
from sqlalchemy_proletarian.testing import FrozenClock

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_the_clock_moves_forward_only() -> None:
    """It shows the time that it was given until it is moved."""
    clock = FrozenClock(NOON)
    assert clock() == clock() == NOON
    assert clock.advance(HOUR) == clock() == NOON + HOUR
    assert clock.advance(1500) == NOON + HOUR + timedelta(seconds=1.5)
    assert clock.advance_to(NOON + 2 * HOUR) == clock() == NOON + 2 * HOUR
    assert repr(clock) == "<FrozenClock 2026-05-01T14:00:00+00:00>"
    with pytest.raises(ValueError, match="by must not be negative"):
        clock.advance(-HOUR)
    with pytest.raises(ValueError, match=r"shows 2026-05-01T14:00:00.*after 2026-05-01T12:00:00"):
        clock.advance_to(NOON)
    with pytest.raises(TypeError, match="time must be a datetime, not None"):
        clock.advance_to(None)  # type: ignore[arg-type]
    assert clock() == NOON + 2 * HOUR


def test_its_time_has_a_time_zone() -> None:
    """By default it shows the current time; a naive time is rejected."""
    before = utcnow()
    assert before <= FrozenClock()() <= utcnow()
    with pytest.raises(ValueError, match="now is a naive datetime"):
        FrozenClock(datetime(2026, 5, 1))  # noqa: DTZ001
    east = timezone(HOUR)
    assert FrozenClock(datetime(2026, 5, 1, 13, tzinfo=east))() == NOON


def test_in_a_block_it_is_the_default_clock_of_all_threads() -> None:
    """Workers and functions that are given no clock read it; after the block, the system's."""
    seen: list[Any] = []
    with FrozenClock(NOON) as clock:
        clock.advance(HOUR)
        thread = Thread(target=lambda: seen.append(utcnow()))
        thread.start()
        thread.join()
        seen += [utcnow(), checked_clock(utcnow)()]
    assert seen == [NOON + HOUR] * 3
    assert utcnow() > NOON + HOUR
    assert checked_clock(utcnow)() > NOON + HOUR


def test_blocks_may_be_nested_and_end_in_any_order() -> None:
    """The one that was begun last counts, as long as it lasts."""
    outer, inner = FrozenClock(NOON), FrozenClock(NOON + HOUR)
    with outer, inner, outer:
        assert utcnow() == NOON
    outer.__enter__()
    with inner:
        assert utcnow() == NOON + HOUR
        outer.__exit__()
        assert utcnow() == NOON + HOUR
    assert utcnow() > NOON + HOUR


def test_the_block_ends_with_an_error() -> None:
    with pytest.raises(KeyError), FrozenClock(NOON):
        raise KeyError
    assert utcnow() > NOON
