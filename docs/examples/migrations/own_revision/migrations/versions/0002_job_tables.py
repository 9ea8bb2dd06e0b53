"""The job tables: an empty revision, filled in by hand."""

from sqlalchemy_proletarian import migrations

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the job tables."""
    migrations.upgrade(version=1)


def downgrade() -> None:
    """Drop the tables."""
    migrations.downgrade(version=0)
