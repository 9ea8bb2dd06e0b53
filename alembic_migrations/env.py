"""The Alembic environment of the shipped branch, as ``proletarian migrate`` runs it.

Online it uses the connection in ``config.attributes["connection"]``, in whose transaction it takes
part, or else one of its own to the option ``sqlalchemy.url``. Offline it writes for the dialect of
that option, by default PostgreSQL.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.runtime.environment import NameFilterParentNames, NameFilterType
from sqlalchemy import Connection, NullPool, create_engine

from sqlalchemy_proletarian.migrations import VERSION_TABLE, include_name
from sqlalchemy_proletarian.models import Base

url = context.config.get_main_option("sqlalchemy.url")


def only_ours(name: str | None, type_: NameFilterType, parents: NameFilterParentNames) -> bool:
    """Let autogenerate, which writes the next version, see what it must not see elsewhere."""
    return type_ != "table" or not include_name(name, type_, parents)


def run(**options: Any) -> None:
    """Run the migrations that Alembic's command asked for."""
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


given: Connection | None = context.config.attributes.get("connection")
if context.is_offline_mode():
    run(url=url or "postgresql+psycopg://", literal_binds=True)
elif given is not None:
    run(connection=given)
elif url:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        run(connection=connection)
else:
    msg = "give a connection in config.attributes['connection'], or the option sqlalchemy.url"
    raise ValueError(msg)
