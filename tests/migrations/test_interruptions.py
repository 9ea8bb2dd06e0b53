"""Tests that an interrupted migration can be run again, also without transactional DDL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, event, inspect, text

from sqlalchemy_proletarian import migrate
from sqlalchemy_proletarian.migrations import VERSION_TABLE

from .conftest import DATABASES


class Killed(BaseException):
    """Simulates the end of the process; a BaseException, so that nothing handles it."""


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """Raise ``Killed`` instead of the nth statement that changes a database."""
    changes = count(1)

    def before_execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        is_change = statement.lstrip().startswith(("CREATE", "DROP", "ALTER", "INSERT", "DELETE"))
        if is_change and next(changes) == number:
            raise Killed

    event.listen(Engine, "before_cursor_execute", before_execute)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", before_execute)


def is_killed(migration: Callable[[URL], object], url: URL, number: int) -> bool:
    """Run a migration with ``killed_at`` and return whether it was killed."""
    try:
        with killed_at(number):
            migration(url)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("database", DATABASES)
def test_a_killed_migration_can_be_run_again(empty: URL, database: str) -> None:
    """After a kill at any statement of an upgrade or a downgrade, the next run succeeds."""
    ups = downs = 0
    engine = create_engine(empty, poolclass=NullPool)
    for number in count(1):
        up = is_killed(migrate.upgrade, empty, number)
        migrate.upgrade(empty)
        assert not migrate.check(empty).differences
        down = is_killed(migrate.downgrade, empty, number)
        migrate.downgrade(empty)
        inspector = inspect(engine)
        assert not inspector.has_schema("proletarian")
        assert set(inspector.get_table_names()) <= {VERSION_TABLE}
        ups, downs = ups + up, downs + down
        if not up and not down:
            break
    assert ups > 6
    assert downs > 3


@pytest.mark.parametrize("database", ["mariadb", "mysql"])
def test_another_table_of_the_same_name_is_not_accepted(empty: URL, database: str) -> None:
    """A run after an interruption accepts only the tables that the migration would create."""
    engine = create_engine(empty, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE DATABASE proletarian"))
        connection.execute(text("CREATE TABLE proletarian.job (job_id INT)"))
    with pytest.raises(Exception, match="already exists"):
        migrate.upgrade(empty)
