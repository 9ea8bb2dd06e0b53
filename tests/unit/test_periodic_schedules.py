from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlalchemy_proletarian.periodic.due import MOST, due
from sqlalchemy_proletarian.periodic.timing import EPOCH, NEVER, Timing, timing_of

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def ticks(cron: str, zone: str, start: str, count: int = 5) -> list[str]:
    """Return the next ticks in local time, with their offset from UTC."""
    timing, there = timing_of(cron, None, zone), ZoneInfo(zone)
    at = datetime.fromisoformat(start).replace(tzinfo=there).astimezone(UTC)
    found = []
    for _ in range(count):
        at = timing.after(at)
        assert at.tzinfo is UTC
        found.append(at.astimezone(there).strftime("%m-%d %H:%M %z"))
    return found


@pytest.mark.parametrize(
    ("zone", "evening", "cron", "expected"),
    [
        pytest.param(
            "Europe/Oslo",
            "2026-10-24 12:00",
            "30 2 * * *",
            ["10-25 02:30 +0200", "10-26 02:30 +0100"],
            id="Oslo",
        ),
        pytest.param(
            "America/New_York",
            "2026-10-31 12:00",
            "0,30 1 * * *",
            ["11-01 01:00 -0400", "11-01 01:30 -0400", "11-02 01:00 -0500", "11-02 01:30 -0500"],
            id="New York",
        ),
        pytest.param(
            "Australia/Lord_Howe",
            "2026-04-04 12:00",
            "45 1 * * *",
            ["04-05 01:45 +1100", "04-06 01:45 +1030"],
            id="Lord Howe",
        ),
        pytest.param(
            "Europe/Oslo",
            "2026-10-24 23:00",
            "0 */2 * * *",
            ["10-25 00:00 +0200", "10-25 02:00 +0200", "10-25 04:00 +0100", "10-25 06:00 +0100"],
            id="every second hour",
        ),
    ],
)
def test_a_time_of_day_has_one_tick_when_clocks_go_back(
    zone: str, evening: str, cron: str, expected: list[str]
):
    """It is the first of the two times with the same name."""
    assert ticks(cron, zone, evening, len(expected)) == expected


@pytest.mark.parametrize(
    ("zone", "evening", "cron", "expected"),
    [
        pytest.param(
            "Europe/Oslo",
            "2026-03-28 12:00",
            "30 2 * * *",
            ["03-29 03:00 +0200", "03-30 02:30 +0200"],
            id="Oslo",
        ),
        pytest.param(
            "Europe/Oslo",
            "2026-03-28 12:00",
            "15,30,45 2 * * *",
            ["03-29 03:00 +0200", "03-30 02:15 +0200"],
            id="once for several times",
        ),
        pytest.param(
            "Europe/Oslo",
            "2026-03-28 12:00",
            "0 2,3 * * *",
            ["03-29 03:00 +0200", "03-30 02:00 +0200"],
            id="a tick at the end of the gap",
        ),
        pytest.param(
            "Europe/Oslo",
            "2026-03-28 12:00",
            "*/30 2 * * *",
            ["03-29 03:00 +0200", "03-30 02:00 +0200", "03-30 02:30 +0200"],
            id="every half hour of a skipped hour",
        ),
        pytest.param(
            "America/New_York",
            "2026-03-07 12:00",
            "5 2 * * *",
            ["03-08 03:00 -0400", "03-09 02:05 -0400"],
            id="New York",
        ),
        pytest.param(
            "Australia/Lord_Howe",
            "2026-10-03 12:00",
            "15 2 * * *",
            ["10-04 02:30 +1100", "10-05 02:15 +1100"],
            id="Lord Howe",
        ),
    ],
)
def test_a_skipped_time_of_day_has_its_tick_right_after_the_gap(
    zone: str, evening: str, cron: str, expected: list[str]
):
    assert ticks(cron, zone, evening, len(expected)) == expected


@pytest.mark.parametrize("zone", ["Europe/Oslo", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("minutes", [1, 5, 10, 30])
def test_a_minutely_cadence_keeps_its_distance_all_year(zone: str, minutes: int):
    """No tick is missing, and none is doubled, when clocks go back or forward."""
    timing = timing_of(f"*/{minutes} * * * *", None, zone)
    for start in (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)):
        for day in range(40):
            at = start + timedelta(days=day, hours=-3)
            end = at + timedelta(hours=24) if minutes >= 10 else at + timedelta(hours=2)
            found = [at := timing.after(at)]
            while at < end:
                found.append(at := timing.after(at))
            assert {b - a for a, b in pairwise(found)} == {timedelta(minutes=minutes)}


def test_a_minutely_job_of_the_night_runs_in_both_hours_with_the_same_name():
    """The clock shows 2 o'clock for two hours, and a quarter-hourly job runs eight times."""
    found = ticks("*/15 2 * * *", "Europe/Oslo", "2026-10-24 12:00", 9)
    assert [tick[:5] for tick in found] == ["10-25"] * 8 + ["10-26"]
    assert len(set(found)) == 9


def test_an_hourly_cadence_on_lord_howe_island_loses_no_full_hour():
    """Clocks change by half an hour; every full hour that the clock shows has a tick."""
    assert ticks("0 */2 * * *", "Australia/Lord_Howe", "2026-04-04 23:00", 3) == [
        "04-05 00:00 +1100",
        "04-05 02:00 +1030",
        "04-05 04:00 +1030",
    ]


def test_the_second_of_two_equal_times_is_never_answered_with_the_first():
    """A worker that asks during the repeated hour gets a later time."""
    oslo = ZoneInfo("Europe/Oslo")
    second = datetime(2026, 10, 25, 2, 30, tzinfo=oslo, fold=1)
    tick = timing_of("45 2 * * *", None, "Europe/Oslo").after(second)
    assert tick == datetime(2026, 10, 26, 2, 45, tzinfo=oslo)


ZONES = ["UTC", "Europe/Oslo", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"]
CRONS = ["* * * * *", "*/7 * * * *", "30 2 * * *", "0 */3 * * *", "10 1-3 * * 0", "*/20 2 1 * *"]


@settings(max_examples=300)
@given(
    st.integers(0, 6 * 365 * 24 * 3600),
    st.sampled_from(ZONES),
    st.sampled_from(CRONS),
)
def test_ticks_ascend_and_do_not_depend_on_where_the_search_begins(
    seconds: int, zone: str, cron: str
):
    """The tick after a time is the tick after every time between the two."""
    at = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    timing = timing_of(cron, None, zone)
    tick = timing.after(at)
    assert tick > at
    assert timing.after(at + (tick - at) / 2) == tick
    assert timing.after(tick - timedelta(seconds=1)) == tick
    assert timing.after(tick) > tick


@pytest.mark.parametrize("every", [timedelta(seconds=7), MINUTE, HOUR, timedelta(days=1)])
def test_an_interval_is_counted_from_1970(every: timedelta):
    """A deployment does not move the ticks of an interval."""
    timing = timing_of(None, every, "UTC")
    at = timing.after(datetime(2026, 5, 1, 12, 34, 56, 789, tzinfo=UTC))
    assert (at - EPOCH) % every == timedelta()
    assert timing.after(at) == at + every
    assert timing.after(at - every / 2) == at


@pytest.mark.parametrize(
    ("cron", "every", "zone", "error", "message"),
    [
        (None, None, "UTC", ValueError, "either cron= or every="),
        ("* * * * *", MINUTE, "UTC", ValueError, "either cron= or every="),
        (5, None, "UTC", TypeError, "cron must be a string"),
        ("* * * *", None, "UTC", ValueError, "4 fields instead of 5"),
        ("* * * * * *", None, "UTC", ValueError, "6 fields instead of 5"),
        ("61 * * * *", None, "UTC", ValueError, "'61 .*' is not valid: Bad minute"),
        ("0 0 30 2 *", None, "UTC", ValueError, "Bad day-of-month"),
        ("0 0 */20 * 1L", None, "UTC", ValueError, "has no tick"),
        ("0 0 * * 1#2/3", None, "UTC", ValueError, "is not valid"),
        ("0 3 * * *", None, "Europe/Olso", ValueError, "no time zone 'Europe/Olso'"),
        ("0 3 * * *", None, None, ValueError, "no time zone None"),
        (None, 60, "UTC", TypeError, "every must be a timedelta"),
        (None, timedelta(seconds=0.5), "UTC", ValueError, "whole seconds"),
        (None, timedelta(seconds=-5), "UTC", ValueError, "whole seconds"),
        (None, timedelta(days=100_000), "UTC", ValueError, "whole seconds from 1 to"),
        (None, MINUTE, "Europe/Oslo", ValueError, "timezone is for cron="),
    ],
)
def test_a_timing_that_is_not_valid_is_rejected(
    cron: str, every: timedelta, zone: str, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        timing_of(cron, every, zone)


def test_the_extra_is_named_when_cronsim_is_missing(monkeypatch: pytest.MonkeyPatch):
    """Intervals need no extra."""
    monkeypatch.setitem(__import__("sys").modules, "cronsim", None)
    assert timing_of(None, MINUTE, "UTC").after(EPOCH) == EPOCH + MINUTE
    with pytest.raises(ImportError, match=r"pip install 'sqlalchemy-proletarian\[recurring\]'"):
        timing_of("* * * * *", None, "UTC")


# Which ticks are enqueued.

MINUTELY = Timing(None, 60, "UTC")
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_after_a_downtime_only_the_last_tick_is_enqueued():
    found = due(MINUTELY, NOON, NOON + 10 * MINUTE, catch_up="last", paused=False)
    assert found == ((NOON + 10 * MINUTE,), NOON + 11 * MINUTE)


def test_a_downtime_of_years_is_searched_from_its_end():
    """The 5 million ticks in between are not counted."""
    end = NOON + timedelta(days=3650)
    timing = timing_of("*/1 * * * *", None, "Europe/Oslo")
    assert due(timing, NOON, end, catch_up="last", paused=False) == ((end,), end + MINUTE)
    yearly = timing_of("0 3 1 1 *", None, "UTC")
    last = datetime(2036, 1, 1, 3, tzinfo=UTC)
    assert due(yearly, NOON, end, catch_up="last", paused=False).ticks == (last,)


def test_catching_up_with_all_ticks_is_done_in_portions():
    """Each portion begins where the last one ended."""
    now, at, found = NOON + 250 * MINUTE, NOON, []
    while at <= now:
        portion = due(MINUTELY, at, now, catch_up="all", paused=False)
        assert len(portion.ticks) <= MOST
        found += portion.ticks
        at = portion.next_at
    assert found == [NOON + n * MINUTE for n in range(251)]


@pytest.mark.parametrize(("late", "runs"), [(timedelta(seconds=59), 1), (2 * MINUTE, 0)])
def test_without_catching_up_a_missed_tick_is_dropped(late: timedelta, runs: int):
    """A tick that is a little late was not missed: a worker polls."""
    found = due(Timing(None, 3600, "UTC"), NOON, NOON + late, catch_up="none", paused=False)
    assert (len(found.ticks), found.next_at) == (runs, NOON + HOUR)


@pytest.mark.parametrize("catch_up", ["last", "none", "all"])
def test_the_ticks_of_a_pause_pass_without_a_job(catch_up: str):
    found = due(MINUTELY, NOON, NOON + 10 * MINUTE, catch_up=catch_up, paused=True)
    assert found == ((), NOON + 11 * MINUTE)


def test_an_unknown_next_tick_is_the_first_one_after_now():
    found = due(MINUTELY, None, NOON, catch_up="all", paused=False)
    assert found == ((), NOON + MINUTE)


def test_a_tick_in_the_future_is_left_alone():
    assert due(MINUTELY, NOON, NOON - MINUTE, catch_up="all", paused=False) == ((), NOON)


def test_what_an_operator_has_written_is_checked():
    """The messages name the column."""
    with pytest.raises(ValueError, match='catch_up must be "last", "none" or "all", not \'yes\''):
        due(MINUTELY, NOON, NOON, catch_up="yes", paused=False)
    with pytest.raises(ValueError, match="interval_seconds must be positive, not None"):
        Timing(None, None, "UTC").after(NOON)
    with pytest.raises(ValueError, match="interval_seconds must be positive, not -5"):
        Timing(None, -5, "UTC").after(NOON)
    assert Timing("0 0 */20 * 1L", None, "UTC").after(NOON) == NEVER
