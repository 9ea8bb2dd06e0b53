"""The entry point of the ``proletarian`` command; each group of commands has its own module."""

from __future__ import annotations

import sys

from ..extras import require_extra

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
    from .app import proletarian

    proletarian.modules["worker"] = "worker.command"
    proletarian.modules.update((name, name) for name in _COMMANDS)
    proletarian(prog_name="proletarian")
