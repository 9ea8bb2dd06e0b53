"""The types of the tables' columns: what PostgreSQL has of its own, made the same elsewhere.

PostgreSQL keeps what its types say: text of any length that can be indexed, times with a zone,
UUIDs. MySQL and MariaDB index short strings only, compare them without regard to case unless told
otherwise, and keep no zone; SQLite keeps text. A value that goes in comes out the same everywhere.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BINARY, DateTime, Dialect, Text, TypeDecorator, Uuid
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

from .clock import require_aware

MYSQL: Final = ("mysql", "mariadb")
"""SQLAlchemy's names of the dialect that the two share."""

# MySQL's default collations take "Mail" for "mail", and its older default charset knows no emoji.
_EXACT: Final = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}


class DateTimeUTC(TypeDecorator[datetime]):
    """A time: aware, and in UTC where it comes from the database. A naive one is refused.

    Where the database keeps no zone (MySQL, MariaDB, SQLite), what it keeps is UTC. Microseconds
    are kept everywhere.

    .. versionadded:: 0.1
    """

    impl = DateTime
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(timezone=True)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the dialect's type."""
        here = mysql.DATETIME(fsp=6) if dialect.name in MYSQL else DateTime(timezone=True)
        return dialect.type_descriptor(here)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return what the database is given.

        :raises ValueError: if it has no time zone.
        """
        if value is None:
            return None
        aware = require_aware("a time in the database", value)
        if dialect.name == "postgresql":
            return aware
        return aware.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return what the database has, in UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        try:
            return value.astimezone(UTC)
        except OverflowError:  # at the calendar's end
            return value

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """Let a timedelta that is added to a time be one."""
        if value is None or isinstance(value, datetime):
            return self
        return self.impl_instance.coerce_compared_value(op, value)


class _BinaryUUID(TypeDecorator[UUID]):
    """A UUID as its 16 bytes, in whose order uuid7 is that of time; so does the original."""

    impl = BINARY(16)
    cache_ok = True

    def process_bind_param(self, value: UUID | None, _dialect: Dialect) -> bytes | None:
        return None if value is None else value.bytes

    def process_result_value(self, value: bytes | None, _dialect: Dialect) -> UUID | None:
        return None if value is None else UUID(bytes=bytes(value))


NAME: Final = Text().with_variant(mysql.VARCHAR(255, **_EXACT), *MYSQL)
"""Text of at most 255 characters, as the names of queues, job types and keys are."""

LONG_TEXT: Final = Text().with_variant(mysql.LONGTEXT(**_EXACT), *MYSQL)
"""Text of any length: MySQL's own TEXT ends at 64 kB."""

ID: Final = Uuid().with_variant(_BinaryUUID(), *MYSQL)

TABLE_OPTIONS: Final = {f"{dialect}_engine": "InnoDB" for dialect in MYSQL}
"""MySQL and MariaDB have engines without transactions, one of which may be the server's default."""
