"""The column types of the job tables, which behave the same on every database.

PostgreSQL has native types for text of any length that can be indexed, times with a time zone, and
UUIDs. MySQL and MariaDB index short strings only, compare them case-insensitively by default, and
store no time zone; SQLite stores text. The types here return the value that was stored, on every
database.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import BINARY, JSON, DateTime, Dialect, Text, TypeDecorator, Uuid
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

from ..clock import require_aware

MYSQL: Final = ("mysql", "mariadb")
"""The names of SQLAlchemy's dialect for MySQL and MariaDB."""

_T = TypeVar("_T")

# For MySQL's default collations "Mail" equals "mail"; its older default charset has no emoji.
_EXACT: Final = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}


class _Stored(TypeDecorator[_T]):
    """A type that Alembic's autogenerate renders as the type that it decorates.

    Alembic renders a type with its module and its repr, and the revision imports only SQLAlchemy
    and its dialects: a type of this module would raise a NameError there. Therefore the subclasses
    set ``__module__`` to the module of the type that they decorate.
    """

    def __repr__(self) -> str:
        return repr(self.impl)


class DateTimeUTC(_Stored[datetime]):
    """An aware datetime, returned in UTC. A naive datetime is rejected.

    Databases that store no time zone (MySQL, MariaDB, SQLite) store the time in UTC. Microseconds
    are stored on every database.

    .. versionadded:: 0.1
    """

    __module__ = "sqlalchemy.types"
    impl: TypeEngine[Any] | type[TypeEngine[Any]] = DateTime(timezone=True)
    cache_ok: bool | None = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type of the dialect."""
        here = mysql.DATETIME(fsp=6) if dialect.name in MYSQL else DateTime(timezone=True)
        return dialect.type_descriptor(here)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a datetime to the value to be stored.

        :raises ValueError: if it has no time zone.
        """
        if value is None:
            return None
        aware = require_aware("a time in the database", value)
        if dialect.name == "postgresql":
            return aware
        return aware.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert a stored value to an aware datetime in UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        try:
            return value.astimezone(UTC)
        except OverflowError:  # at the end of the calendar
            return value

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """Let a timedelta that is added to a time stay a timedelta."""
        if value is None or isinstance(value, datetime):
            return self
        return self.impl_instance.coerce_compared_value(op, value)


class _MySQLTime(DateTimeUTC):
    __module__ = "sqlalchemy.dialects.mysql.types"
    impl = mysql.DATETIME(fsp=6)
    cache_ok = True


class _JSONB(postgresql.JSONB):
    """JSONB without ``astext_type`` in its repr, which Alembic cannot render on other databases."""

    __module__ = "sqlalchemy.dialects.postgresql.json"

    def __repr__(self) -> str:
        return f"JSONB(none_as_null={self.none_as_null})"


class _BinaryUUID(_Stored[UUID]):
    """A UUID stored as its 16 bytes, as the original Proletarian does; uuid7 sorts by time."""

    __module__ = "sqlalchemy.types"
    impl = BINARY(16)
    cache_ok = True

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002
        return None if value is None else value.bytes

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> UUID | None:  # noqa: ARG002
        return None if value is None else UUID(bytes=bytes(value))


NAME: Final = Text().with_variant(mysql.VARCHAR(255, **_EXACT), *MYSQL)
"""Text of at most 255 characters, for the names of queues and job types and for keys."""

LONG_TEXT: Final = Text().with_variant(mysql.LONGTEXT(**_EXACT), *MYSQL)
"""Text of any length: TEXT of MySQL is limited to 64 kB."""

TIME: Final = DateTimeUTC().with_variant(_MySQLTime(), *MYSQL)

MAPPING: Final = JSON(none_as_null=True).with_variant(_JSONB(none_as_null=True), "postgresql")
"""A JSON object. None is NULL, not the ``null`` of JSON. PostgreSQL can compare and index JSONB: a
query can use DISTINCT, which JSON does not support."""

ID: Final = Uuid().with_variant(_BinaryUUID(), *MYSQL)

TABLE_OPTIONS: Final = {f"{dialect}_engine": "InnoDB" for dialect in MYSQL}
"""MySQL and MariaDB have engines without transactions, which may be the server's default."""
