"""The Alembic environment of the shipped branch, used by ``proletarian migrate``.

In online mode it uses the connection in ``config.attributes["connection"]`` and its transaction. If
there is none, it connects to the URL in the option ``sqlalchemy.url``. In offline mode it writes
SQL for the dialect of that URL, by default PostgreSQL.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.runtime.environment import NameFilterParentNames, NameFilterType
from sqlalchemy import Connection, NullPool, create_engine

from sqlalchemy_proletarian.migrations import VERSION_TABLE, include_name
from sqlalchemy_proletarian.models import Base

url: str | None = context.config.get_main_option("sqlalchemy.url")


def only_ours(name: str | None, type_: NameFilterType, parents: NameFilterParentNames) -> bool:
    """Return whether a name belongs to the job tables, the inverse of :func:`include_name`."""
    return type_ != "table" or not include_name(name, type_, parents)


def run(**options: Any) -> None:
    """Run the migrations of the current Alembic command."""
    context.configure(
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        include_schemas=True,
        include_name=only_ours,
        compare_server_default=True,
        **options,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_on(url: str) -> None:
    """Run the migrations on a new connection."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        run(connection=connection)


given: Connection | None = context.config.attributes.get("connection")
if context.is_offline_mode():
    run(url=url or "postgresql+psycopg://", literal_binds=True)
elif given is not None:
    run(connection=given)
elif url:
    run_on(url)
else:
    msg = "set config.attributes['connection'] to a connection, or set the option sqlalchemy.url"
    raise ValueError(msg)
