"""The job tables, version 1."""

from sqlalchemy_proletarian import migrations
from sqlalchemy_proletarian.migrations.names import configured

revision = "proletarian_0001"
down_revision = None
branch_labels: tuple[str, ...] = ("proletarian",)
depends_on = None


# Alembic's template "multidb" calls run_migrations(engine_name=...), which passes the argument on.


def upgrade(**_: object) -> None:
    """Create the tables of version 1."""
    migrations.upgrade(version=1, from_version=0, **configured())


def downgrade(**_: object) -> None:
    """Drop the tables of version 1."""
    migrations.downgrade(version=0, from_version=1, **configured())
