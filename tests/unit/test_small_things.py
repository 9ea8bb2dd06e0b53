"""Names of channels, optional dependencies, and what else is small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sqlalchemy_proletarian
from sqlalchemy_proletarian.extras import require_extra
from sqlalchemy_proletarian.telemetry.events import LEVELS, Events
from sqlalchemy_proletarian.wakeup.announce import channel_of


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=130))
def test_channels_are_identifiers(table: str) -> None:
    """Whatever a table is called, PostgreSQL takes the whole name of its channel."""
    channel = channel_of(table)
    assert channel == channel_of(table)
    assert len(channel.encode()) <= 63


def test_long_channels_differ() -> None:
    """Two tables whose names differ at the end only have channels of their own."""
    assert channel_of("s." + "x" * 63 + "1") != channel_of("s." + "x" * 63 + "2")


def test_missing_extra() -> None:
    """What an optional feature lacks is named with the command that installs it."""
    with pytest.raises(ImportError, match=r"pip install 'sqlalchemy-proletarian\[demo\]'"):
        require_extra("no_such_module_at_all", "demo")
    assert require_extra("json", "demo").loads("1") == 1


def test_public_names() -> None:
    """Every public name is there, and the list of them is sorted."""
    names = sqlalchemy_proletarian.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(sqlalchemy_proletarian, name).__doc__


def test_errors_have_one_base() -> None:
    """Whoever catches ProletarianError catches every error of the library."""
    errors = [
        getattr(sqlalchemy_proletarian, name)
        for name in sqlalchemy_proletarian.__all__
        if name.endswith("Error")
    ]
    assert len(errors) > 5
    assert all(issubclass(error, sqlalchemy_proletarian.ProletarianError) for error in errors)


@pytest.mark.parametrize("name", LEVELS)
def test_every_event_can_be_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each event is a log record at its level, with its data as attributes, and reaches ``log``."""
    caplog.set_level(1, "sqlalchemy_proletarian")
    seen: list[tuple[str, Mapping[str, Any]]] = []
    error = ValueError("no")
    Events(lambda *args: seen.append(args), worker="w").emit(name, error, job_type="mail")
    (record,) = caplog.records
    assert (record.levelno, record.worker, record.job_type) == (LEVELS[name], "w", "mail")  # type: ignore[attr-defined]
    assert "no" in caplog.text
    assert seen == [(name, {"worker": "w", "job_type": "mail", "error": error})]
