"""Tests of channel names, optional dependencies, public names and events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sqlalchemy_proletarian
from sqlalchemy_proletarian.extras import require_extra
from sqlalchemy_proletarian.telemetry.events import LEVELS, Events
from sqlalchemy_proletarian.wakeup.channels import channel_of


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=130))
def test_a_channel_name_is_never_truncated(table: str) -> None:
    """PostgreSQL truncates identifiers after 63 bytes."""
    channel = channel_of(table)
    assert channel == channel_of(table)
    assert len(channel.encode()) <= 63


def test_long_table_names_have_different_channels() -> None:
    """Two long table names that differ only at the end have different channels."""
    assert channel_of("s." + "x" * 63 + "1") != channel_of("s." + "x" * 63 + "2")


def test_a_missing_extra_is_reported_with_the_install_command() -> None:
    with pytest.raises(ImportError, match=r"pip install 'sqlalchemy-proletarian\[demo\]'"):
        require_extra("no_such_module_at_all", "demo")
    assert require_extra("json", "demo").loads("1") == 1


def test_public_names_exist_are_documented_and_sorted() -> None:
    names = sqlalchemy_proletarian.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(sqlalchemy_proletarian, name).__doc__


def test_all_errors_inherit_from_proletarian_error() -> None:
    errors = [
        getattr(sqlalchemy_proletarian, name)
        for name in sqlalchemy_proletarian.__all__
        if name.endswith("Error")
    ]
    assert len(errors) > 5
    assert all(issubclass(error, sqlalchemy_proletarian.ProletarianError) for error in errors)


@pytest.mark.parametrize("name", LEVELS)
def test_every_event_is_logged_and_passed_to_the_callback(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log record has the level of the event and its data as attributes."""
    caplog.set_level(1, "sqlalchemy_proletarian")
    seen: list[tuple[str, Mapping[str, Any]]] = []
    error = ValueError("no")
    Events(lambda *args: seen.append(args), worker="w").emit(name, error, job_type="mail")
    (record,) = caplog.records
    assert (record.levelno, record.worker, record.job_type) == (LEVELS[name], "w", "mail")  # type: ignore[attr-defined]
    assert "no" in caplog.text
    assert seen == [(name, {"worker": "w", "job_type": "mail", "error": error})]
