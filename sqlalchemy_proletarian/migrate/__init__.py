"""Create, change and check the default job tables: what ``proletarian migrate`` does.

For applications that do not run Alembic themselves, or want these tables kept apart from their own.
Those that do call :mod:`sqlalchemy_proletarian.migrations` in a revision of their own instead;
:func:`check` serves both.
"""

from .commands import CheckResult, check, downgrade, sql, upgrade

__all__ = ["CheckResult", "check", "downgrade", "sql", "upgrade"]
