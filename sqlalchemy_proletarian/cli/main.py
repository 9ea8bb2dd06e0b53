"""The entry point of the ``proletarian`` command; each group of commands has its own module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..extras import require_extra

if TYPE_CHECKING:
    from .app import ReadableErrors

_COMMANDS = (
    "status",
    "jobs",
    "queues",
    "recurring",
    "enqueue",
    "prune",
    "partitions",
    "dashboard",
    "migrate",
    "demo",
    "bench",
)
"""The commands that are in the module with their name."""


def main() -> None:
    """Run the ``proletarian`` command, or exit with the name of the extra that it requires.

    .. versionadded:: 0.1
    """
    try:
        for module in ("click", "rich"):
            require_extra(module, "cli")
    except ImportError as error:
        sys.exit(str(error))
    add_commands()(prog_name="proletarian")


def add_commands() -> ReadableErrors:
    """Return the command with all its subcommands, whose modules are not imported yet."""
    from .app import proletarian

    proletarian.modules["worker"] = "worker.command"
    proletarian.modules.update((name, name) for name in _COMMANDS)
    return proletarian
