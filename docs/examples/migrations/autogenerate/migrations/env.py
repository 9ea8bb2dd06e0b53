"""Your Alembic environment: the job tables need no configuration."""

import os

from alembic import context
from models import Base
from sqlalchemy import NullPool, create_engine

with create_engine(os.environ["DATABASE_URL"], poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=True,
        render_as_batch=connection.dialect.name == "sqlite",  # SQLite cannot alter its tables
    )
    with context.begin_transaction():
        context.run_migrations()
