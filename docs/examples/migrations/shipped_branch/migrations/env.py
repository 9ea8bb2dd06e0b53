"""Your Alembic environment, which passes the names of the job tables to the shipped branch."""

import os
from typing import Any

from alembic import context
from models import Base
from sqlalchemy import NullPool, create_engine

from sqlalchemy_proletarian import migrations

names = {"table": "email_job", "schema": "mail"}  # omit this for the default names
context.config.attributes["proletarian"] = names
is_no_job_table = migrations.include_name_for(**names)


def include_name(name: str | None, type_: Any, parents: Any) -> bool:
    """Skip other schemas, which on MySQL are all databases of the server, and the job tables."""
    if type_ == "schema":
        return name in {None, names["schema"]}
    return is_no_job_table(name, type_, parents)


with create_engine(os.environ["DATABASE_URL"], poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_schemas=True,
        include_name=include_name,
    )
    with context.begin_transaction():
        context.run_migrations()
