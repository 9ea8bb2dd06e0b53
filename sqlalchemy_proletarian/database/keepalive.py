"""TCP keepalive settings, to detect an unreachable host from both ends of a connection.

A machine that loses power does not close its connections. With the default settings the server
keeps the locks of such a connection for two hours if it was idle, and for 15 minutes if packets
were in flight. A worker waits as long for a server that is unreachable. With these settings both
ends detect it after about 15 seconds.

On MySQL and MariaDB a session cannot set keepalives: see :mod:`.mysql_wait_timeout` and
:mod:`.orphans`.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select, true

_IDLE, _INTERVAL, _COUNT = 5, 3, 3
_UNANSWERED = 14
"""Seconds. While packets are unacknowledged no keepalives are sent, and this timeout applies."""

_CHECK = "client_connection_check_interval"

_Option: TypeAlias = tuple[int, int, int]
"""A level, a name and a value: the arguments of ``socket.setsockopt``."""


def server_settings(
    pid: int | None = None, /, *, local: bool, **more: str
) -> Select[*tuple[Any, ...]]:
    """Return a statement that lets the server detect when this host or process is gone.

    It also turns off the timeouts after which the server would end an idle or a long transaction.

    :param pid: if given, make the settings only in the process of the server with this id, and
        return the id in the first column.
    :param local: whether the settings last until the end of the transaction, not of the session.
    :param more: other settings to make in the same round trip.
    """
    settings = {
        "tcp_keepalives_idle": f"{_IDLE}",
        "tcp_keepalives_interval": f"{_INTERVAL}",
        "tcp_keepalives_count": f"{_COUNT}",
        "tcp_user_timeout": f"{_UNANSWERED}s",
        # A job's transaction is idle while its handler does not use the database.
        "idle_in_transaction_session_timeout": "0",
        **more,
    }
    # A job may take longer than the configured timeout for transactions, and the worker's own
    # connections may be idle for a long time.
    unlimited = (
        ["transaction_timeout"] if local else ["transaction_timeout", "idle_session_timeout"]
    )
    # While a query runs or waits for a lock, the server checks the connection only if this setting
    # is on. It exists since version 14; on Windows it raises an error.
    can_check = and_(
        _has(_CHECK),
        func.current_setting("dynamic_shared_memory_type") != "windows",
    )
    here = true() if pid is None else func.pg_backend_pid() == pid

    def made(name: str, value: str, condition: ColumnElement[bool] = here) -> ColumnElement[Any]:
        change = func.set_config(name, value, local)
        return change if condition is here and pid is None else case((condition, change))

    return select(
        *([] if pid is None else [func.pg_backend_pid()]),
        *(made(name, value) for name, value in settings.items()),
        *(
            # transaction_timeout exists since version 17, idle_session_timeout since 14.
            made(name, "0", and_(here, _has(name)))
            for name in unlimited
        ),
        made(_CHECK, "2s", and_(here, can_check)),
    )


def _has(setting: str) -> ColumnElement[bool]:
    """Return an expression for whether the server has a setting."""
    return func.current_setting(setting, True).is_not(None)  # noqa: FBT003


def set_client_keepalive(driver: Any) -> None:
    """Let this host detect when the server is gone.

    :param driver: the connection of the driver.
    """
    with socket_of(driver) as line:
        _set(line, _OUR_END)


_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


@contextmanager
def keepalive_in_transaction(
    connection: Connection,
    driver: Any,
    more: Mapping[str, str] = _NO_SETTINGS,
    *,
    server: bool = True,
) -> Generator[None]:
    """Apply both for the open transaction of a connection of the application; undo it afterwards.

    The connection may have been returned to its pool by then.

    :param more: further settings of the transaction.
    :param server: whether the server has such settings; else only this end is set.
    """
    with socket_of(driver) as line:
        # Kept in connection.info: if the connection is taken from the pool again before it is
        # restored, the next user must not take our settings for the original ones.
        before = connection.info.setdefault(_BEFORE, list(_get(line)))
        _set(line, _OUR_END)
        try:
            if server:
                connection.execute(_settings_of_transaction(**more))
            yield
        finally:
            _set(line, before)


_BEFORE = "proletarian_before"


@lru_cache
def _settings_of_transaction(**more: str) -> Select[*tuple[Any, ...]]:
    return server_settings(local=True, **more)


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
def socket_of(driver: Any) -> Generator[socket.socket | None]:
    """Yield a duplicate of a connection's socket, or None if the connection has no socket."""
    line = None
    with suppress(Exception):
        # asyncpg and aiomysql have a transport of asyncio, PyMySQL a socket; others have a fileno.
        transport = getattr(driver, "_transport", None) or getattr(driver, "_writer", None)
        owner = getattr(driver, "_sock", driver)
        if transport is not None:
            owner = transport.get_extra_info("socket")
        # Not the method dup() of a socket: it would set the driver's socket to blocking mode.
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
            with suppress(OSError):  # a Unix socket, or a lost connection
                line.setsockopt(*option)
