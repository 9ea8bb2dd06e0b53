"""Your Alembic environment, which gives the names of the job tables to the shipped branch."""

import os

from alembic import context
from models import Base
from sqlalchemy import NullPool, create_engine

from sqlalchemy_proletarian import migrations

names = {"table": "email_job", "schema": "mail"}  # leave it out for the default names
context.config.attributes["proletarian"] = names

with create_engine(os.environ["DATABASE_URL"], poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_schemas=True,
        include_name=migrations.include_name_for(**names),
    )
    with context.begin_transaction():
        context.run_migrations()
