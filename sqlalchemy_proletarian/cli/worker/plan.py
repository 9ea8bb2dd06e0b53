"""What the options of the command ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

STOPPED: Final = 0
"""The exit code after a requested stop, and when ``--drain`` is done."""
ERROR: Final = 1
"""The exit code of an error. (click exits with 2 if an option is wrong.)"""
TIMED_OUT: Final = 3
"""The exit code of a stop that did not wait for all handlers, because they took too long."""
INTERRUPTED: Final = 130
"""The exit code after a second signal."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of one run of the command; None where an option was not given."""

    target: str
    url: str | None
    models: tuple[str, ...]
    queues: tuple[str, ...] | Mapping[str, int] | None
    threads: int | None
    concurrency: int | None
    in_a_loop: bool
    """Whether ``--asyncio`` was given."""
    lease: timedelta | None
    shutdown_timeout: timedelta | None
    pool_size: int | None
    processes: int
    health_port: int | None
    health_host: str
    drain: bool
    reload: bool
    max_jobs: int | None
    max_memory: int | None
    wait: timedelta
    quiet: bool
    log_level: str
    log_format: Literal["text", "json"]
    debug: bool
    given: frozenset[str] = frozenset()
    """The names of the options that are not at their defaults."""
    typed: frozenset[str] = frozenset()
    """The names of the options that were given on the command line."""

    @property
    def supervised(self) -> bool:
        """Whether a supervisor is needed."""
        return self.processes > 1 or self.reload or self.recycles

    @property
    def recycles(self) -> bool:
        """Whether processes are replaced after some jobs, or when they take much memory."""
        return self.max_jobs is not None or self.max_memory is not None
