"""The database server under test: one database per contender, and the server's counters."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url

PREFIX = "proletarian_bench_"


@dataclass(frozen=True)
class Counters:
    """The transactions of a database, and the WAL position of the whole server."""

    transactions: int
    wal: int


class Server:
    """An administrator's connection to the server, in a database that no contender uses."""

    def __init__(self, url: URL) -> None:
        self.url = url
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self.connection = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        """Disconnect."""
        self.connection.close()

    def scalar(self, statement: str, *parameters: object) -> Any:
        """Return the single value of a query."""
        row = self.connection.execute(statement.encode(), parameters).fetchone()
        return row[0] if row else None

    def create(self, name: str, template: str | None = None) -> str:
        """Create an empty database or a copy of ``template``; return its URL without a driver."""
        database = f"{PREFIX}{os.getpid()}_{name.replace('-', '_')}"
        self.drop(database)
        self.connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(database),
                sql.Identifier(_database(template) if template else "template1"),
            )
        )
        return self.url.set(drivername="postgresql", database=database).render_as_string(
            hide_password=False
        )

    def drop(self, database: str) -> None:
        """Drop a database, even if there are connections to it."""
        self.connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
        )

    def evict(self, database: str) -> None:
        """Terminate all sessions of a database and wait until they have reported their counts."""
        self.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = %s AND backend_type = 'client backend'",
            [database],
        )
        while self.scalar(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = %s AND backend_type = 'client backend'",
            database,
        ):
            time.sleep(0.01)

    def checkpoint(self) -> None:
        """Request a checkpoint if permitted, so that no contender pays for the previous one."""
        try:
            self.connection.execute("CHECKPOINT")
        except psycopg.errors.InsufficientPrivilege:
            return

    def counters(self, database: str) -> Counters:
        """Return the transactions of a database and the current WAL position."""
        transactions = self.scalar(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s",
            database,
        )
        wal = self.scalar("SELECT pg_current_wal_insert_lsn() - '0/0'")
        return Counters(int(transactions), int(wal))

    def statements(self, database: str) -> int | None:
        """Return the number of statements of a database, or None without pg_stat_statements."""
        try:
            count = self.scalar(
                "SELECT coalesce(sum(s.calls), 0) FROM pg_stat_statements s "
                "JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = %s",
                database,
            )
        except psycopg.Error:
            return None
        return int(count)

    def facts(self) -> dict[str, str]:
        """Return the settings that determine the cost of a commit."""
        names = ["server_version", "fsync", "synchronous_commit", "full_page_writes"]
        names += ["shared_buffers", "wal_level", "max_wal_size", "data_checksums"]
        return {name: str(self.scalar("SELECT current_setting(%s)", name)) for name in names}


def _database(url: str) -> str:
    return make_url(url).database or ""
