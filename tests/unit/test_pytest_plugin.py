"""The plugin for pytest."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

NAME = "pytest_sqlalchemy_proletarian"
ROOT = Path(__file__).parents[2]


def test_the_fixture_freezes_the_time_of_each_test(pytester: pytest.Pytester) -> None:
    """Each test that uses the fixture has its own clock, and others have the system's."""
    pytester.makepyfile("""
        from datetime import timedelta
        from time import sleep
        from sqlalchemy_proletarian import utcnow

        def test_frozen(proletarian_clock):
            first = utcnow()
            sleep(0.001)
            assert utcnow() == first == proletarian_clock()
            proletarian_clock.advance(timedelta(days=1))
            assert utcnow() == first + timedelta(days=1)

        def test_next(proletarian_clock):
            assert proletarian_clock() == utcnow()

        def test_without():
            first = utcnow()
            sleep(0.001)
            assert utcnow() > first
    """)
    result = pytester.runpytest_subprocess("-p", NAME, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3)
    fixtures = pytester.runpytest_subprocess("-p", NAME, "--fixtures").stdout.str()
    assert "proletarian_clock" in fixtures
    assert "Freeze the time of the library in this test" in fixtures


def test_an_assertion_that_fails_shows_the_line_of_the_test(pytester: pytest.Pytester) -> None:
    """The code of the kit is no part of what pytest shows."""
    pytester.makepyfile("""
        from sqlalchemy import create_engine
        from sqlalchemy.orm import Session
        from sqlalchemy_proletarian import Base, enqueue
        from sqlalchemy_proletarian.testing import assert_enqueued, assert_not_enqueued

        def test_it():
            options = {"schema_translate_map": {"proletarian": None}}
            engine = create_engine("sqlite://", execution_options=options)
            Base.metadata.create_all(engine)
            with Session(engine) as session:
                enqueue(session, "mail", {"to": "ada"})
                assert_enqueued(session, "mail", payload={"to": "bob"})
    """)
    result = pytester.runpytest_subprocess("-p", NAME)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '>* assert_enqueued(session, "mail", payload={"to": "bob"})',
            "E * AssertionError: no such job is enqueued: 'mail' payload={'to': 'bob'}",
            "E *'mail' payload={'to': 'ada'} *← payload?'to'? differs",
        ]
    )
    result.stdout.no_fnmatch_line("*find_jobs*")


def test_an_unused_plugin_imports_nothing() -> None:
    """Loading the plugin imports neither the library nor SQLAlchemy."""
    code = f"import {NAME}, sys; print([m for m in sys.modules if m.startswith('sqlalchemy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_library_does_not_need_pytest() -> None:
    """The kit works with unittest, too: it does not import pytest."""
    code = (
        "import sys, sqlalchemy_proletarian.testing.asyncio; "
        "print([m for m in sys.modules if 'pytest' in m or m == 'unittest'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_distribution_declares_the_plugin() -> None:
    """Pytest finds it by its entry point, and it is no dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {NAME: NAME}
    assert [name for name in project["dependencies"] if "pytest" in name] == []
