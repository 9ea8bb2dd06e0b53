"""Noticing a host that has vanished without a word: from the server's end of a line, and from ours.

A machine that loses its power closes no connection. With their defaults, the server keeps its locks
for two hours where the line was idle, for a quarter of an hour where packets were on their way, and
a worker waits as long for a server that has vanished. With these settings both know it after about
a quarter of a minute.

MySQL and MariaDB let no session set their keepalives: see :mod:`.silence` and :mod:`.lines`.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select

_IDLE, _INTERVAL, _COUNT = 5, 3, 3
_UNANSWERED = 14
"""Seconds. While packets are on their way no keepalive is sent: it is this that counts then."""

_CHECK = "client_connection_check_interval"

_Option: TypeAlias = tuple[int, int, int]
"""A level, a name and a value, as ``socket.setsockopt`` takes them."""


def at_the_servers_end(*, local: bool, **more: str) -> Select[*tuple[Any, ...]]:
    """Make the server notice that this host or process is gone, and wait while it is there.

    :param local: until the end of the transaction, not of the session.
    :param more: other settings, for the same round trip.
    """
    settings = {
        "tcp_keepalives_idle": f"{_IDLE}",
        "tcp_keepalives_interval": f"{_INTERVAL}",
        "tcp_keepalives_count": f"{_COUNT}",
        "tcp_user_timeout": f"{_UNANSWERED}s",
        # A job's transaction is idle while its handler computes.
        "idle_in_transaction_session_timeout": "0",
        **more,
    }
    # A job may take longer than others may, and a connection of the worker's may be idle for long.
    unlimited = (
        ["transaction_timeout"] if local else ["transaction_timeout", "idle_session_timeout"]
    )
    # While a query runs or waits for a lock, the server looks at the line only if it is told to. It
    # can since version 14, but not on Windows, where this setting is an error.
    can_check = and_(
        _has(_CHECK),
        func.current_setting("dynamic_shared_memory_type") != "windows",
    )
    return select(
        *(func.set_config(name, value, local) for name, value in settings.items()),
        *(
            # Not in every release: the first since 17, the second since 14.
            case((_has(name), func.set_config(name, "0", local)))
            for name in unlimited
        ),
        case((can_check, func.set_config(_CHECK, "2s", local))),
    )


def _has(setting: str) -> ColumnElement[bool]:
    """Return whether the server has a setting."""
    return func.current_setting(setting, True).is_not(None)  # noqa: FBT003


def at_our_end(driver: Any) -> None:
    """Make this host notice that the server is gone.

    :param driver: the driver's own connection.
    """
    with line_of(driver) as line:
        _set(line, _OUR_END)


@contextmanager
def at_both_ends(connection: Connection, driver: Any) -> Generator[None]:
    """Do both for the open transaction of somebody else's connection, and undo it afterwards.

    It may have gone back to its pool by then.
    """
    with line_of(driver) as line:
        # Whoever has taken it from the pool by then must not find ours.
        before = connection.info.setdefault(_BEFORE, list(_get(line)))
        _set(line, _OUR_END)
        try:
            if connection.dialect.name == "postgresql":
                connection.execute(_UNTIL_IT_ENDS)
            yield
        finally:
            _set(line, before)


_BEFORE = "proletarian_before"
_UNTIL_IT_ENDS = at_the_servers_end(local=True)
_OUR_END: tuple[_Option, ...] = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", _IDLE),
            ("TCP_KEEPALIVE", _IDLE),  # as macOS calls it
            ("TCP_KEEPINTVL", _INTERVAL),
            ("TCP_KEEPCNT", _COUNT),
            ("TCP_USER_TIMEOUT", 1000 * _UNANSWERED),
        )
        if hasattr(socket, name)
    ),
)


@contextmanager
def line_of(driver: Any) -> Generator[socket.socket | None]:
    """Yield the socket of a connection, which it may outlive, or None where there is no such."""
    line = None
    with suppress(Exception):
        # asyncpg's and aiomysql's, which asyncio has made; that of PyMySQL; others have a fileno.
        transport = getattr(driver, "_transport", None) or getattr(driver, "_writer", None)
        owner = getattr(driver, "_sock", driver)
        if transport is not None:
            owner = transport.get_extra_info("socket")
        # Not by the method of a socket: it makes the line block, whose owner waits in another way.
        line = socket.socket(fileno=socket.dup(owner.fileno()))
    try:
        yield line
    finally:
        if line is not None:
            line.close()


def _get(line: socket.socket | None) -> Generator[_Option]:
    if line is not None:
        for level, name, _ in _OUR_END:
            with suppress(OSError):
                yield level, name, line.getsockopt(level, name)


def _set(line: socket.socket | None, options: Iterable[_Option]) -> None:
    if line is not None:
        for option in options:
            with suppress(OSError):  # of a Unix socket, or of a connection that is lost
                line.setsockopt(*option)
