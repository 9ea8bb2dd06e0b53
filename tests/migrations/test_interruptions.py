"""A migration that is killed in the middle is run again, also where nothing undoes it."""

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
    """What stands for the process's death: it is nobody's to handle."""


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """Let no engine come to the statement of this number among those that change something."""
    changes = count(1)

    def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        writes = statement.lstrip().startswith(("CREATE", "DROP", "ALTER", "INSERT", "DELETE"))
        if writes and next(changes) == number:
            raise Killed

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", before)


def is_killed(migration: Callable[[URL], object], url: URL, number: int) -> bool:
    """Run a migration that may be killed at a statement; tell whether it was."""
    try:
        with killed_at(number):
            migration(url)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("database", DATABASES)
def test_a_migration_that_is_killed(empty: URL, database: str) -> None:
    """Wherever it is killed, on the way up or down, the next one gets there."""
    ups = downs = 0
    engine = create_engine(empty, poolclass=NullPool)
    for number in count(1):
        up = is_killed(migrate.upgrade, empty, number)
        migrate.upgrade(empty)
        assert not migrate.check(empty).differences
        down = is_killed(migrate.downgrade, empty, number)
        migrate.downgrade(empty)
        look = inspect(engine)
        assert not look.has_schema("proletarian")
        assert set(look.get_table_names()) <= {VERSION_TABLE}
        ups, downs = ups + up, downs + down
        if not up and not down:
            break
    assert ups > 6
    assert downs > 3


@pytest.mark.parametrize("database", ["mariadb", "mysql"])
def test_another_table_of_the_name(empty: URL, database: str) -> None:
    """Only a table that the step would make is taken for what an earlier one has left."""
    engine = create_engine(empty, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE DATABASE proletarian"))
        connection.execute(text("CREATE TABLE proletarian.job (job_id INT)"))
    with pytest.raises(Exception, match="already exists"):
        migrate.upgrade(empty)
