"""Your Alembic environment, with a filter that keeps autogenerate away from the job tables."""

import os

from alembic import context
from models import Base
from sqlalchemy import NullPool, create_engine

from sqlalchemy_proletarian import migrations

with create_engine(os.environ["DATABASE_URL"], poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_schemas=True,
        include_name=migrations.include_name,
    )
    with context.begin_transaction():
        context.run_migrations()
