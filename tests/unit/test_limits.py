from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_proletarian import Handlers
from sqlalchemy_proletarian.lifecycle import starts
from sqlalchemy_proletarian.lifecycle.limits import Limit, Rate, as_rate, name_of

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/minute", Rate(100, timedelta(minutes=1))),
        ("1/second", Rate(1, SECOND)),
        ("5/10 seconds", Rate(5, 10 * SECOND)),
        ("1/hour", Rate(1, timedelta(hours=1))),
        ("2000/2 days", Rate(2000, timedelta(days=2))),
    ],
)
def test_a_rate_is_a_number_and_a_time(text: str, rate: Rate):
    assert as_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0/minute", "5", "5/0 seconds", "5/week", "-1/second"])
def test_other_texts_are_no_rates(text: str):
    with pytest.raises(ValueError, match="rate must be a number and a time, such as"):
        as_rate(text)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1"),
        ({"concurrency": "2"}, TypeError, "concurrency must be an int"),
        ({"concurrency_key": "customer"}, TypeError, "concurrency_key must be a function"),
        ({"rate": 5}, TypeError, 'rate must be a string such as "100/minute"'),
    ],
)
def test_a_registration_checks_its_limits(
    options: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        Handlers()("sync", **options)


def test_a_key_alone_means_one_job_at_a_time():
    handlers = Handlers()

    @handlers("sync", concurrency_key=str)
    def sync(payload: int) -> None: ...

    assert sync.limit == Limit(1, str)


def test_every_database_can_store_a_name_and_tell_it_from_others():
    names = {
        name_of("a", key)
        for key in (None, "b", "b ", "b\0", "b\n", "b" * 300, "b" * 301, "\ud800", 1)
    }
    assert len(names) == 9
    for name in names:
        assert len(name) <= 255
        assert name.isprintable()
        assert not name.endswith(" ")
    assert name_of("sync", 42) == "sync/42"


@given(
    limit=st.integers(1, 30),
    waits=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40)), min_size=1, max_size=400),
    late=st.randoms(use_true_random=False),
)
def test_no_window_has_more_starts_than_the_rate(limit: int, waits: Any, late: Any):
    """Wherever the window begins, and however late in its grace each job starts."""
    rate, now = Rate(limit, SECOND), NOW
    recorded: starts.Starts = []
    happened: list[datetime] = []
    for milliseconds, wanted in waits:
        now += timedelta(milliseconds=milliseconds)
        count = max(0, min(wanted, starts.available(recorded, rate, now)))
        if count:
            recorded = starts.read(starts.written(starts.add(recorded, rate, now, count)))
            happened += [now + rate.grace * late.random() for _ in range(count)]
        elif starts.available(recorded, rate, now) <= 0:
            at = starts.next_at(recorded, rate, now)
            assert at > now
            assert starts.available(recorded, rate, at) > 0
        assert len(recorded) <= starts.MAX_ENTRIES
    happened.sort()
    for n, first in enumerate(happened):
        assert sum(at < first + SECOND for at in happened[n:]) <= limit


def test_many_starts_are_recorded_in_few_entries():
    """A rate of many starts is used almost fully."""
    rate, now = Rate(10_000, timedelta(minutes=1)), NOW
    recorded: starts.Starts = []
    started = 0
    for _ in range(6_000):
        now += timedelta(milliseconds=20)
        count = min(5, starts.available(recorded, rate, now))
        if count > 0:
            recorded, started = starts.add(recorded, rate, now, count), started + count
    assert len(recorded) <= starts.MAX_ENTRIES
    assert started > 19_000
