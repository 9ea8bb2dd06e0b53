"""Your Alembic environment, with a filter that hides the job tables from autogenerate."""

import os
from typing import Any

from alembic import context
from models import Base
from sqlalchemy import NullPool, create_engine

from sqlalchemy_proletarian import migrations

SCHEMAS = {None, "proletarian"}  # the schemas to inspect; None has your own tables


def include_name(name: str | None, type_: Any, parents: Any) -> bool:
    """Skip other schemas, which on MySQL are all databases of the server, and the job tables."""
    if type_ == "schema":
        return name in SCHEMAS
    return migrations.include_name(name, type_, parents)


with create_engine(os.environ["DATABASE_URL"], poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_schemas=True,
        include_name=include_name,
    )
    with context.begin_transaction():
        context.run_migrations()
