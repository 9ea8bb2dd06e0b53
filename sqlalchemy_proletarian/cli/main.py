"""The entry point of the ``proletarian`` command; each group of commands has its own module."""

from __future__ import annotations

import sys

from ..extras import require_extra


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
    from .worker.command import worker

    proletarian.add_command(worker)
    if sys.argv[1:2] == ["worker"]:  # it runs for long: without the modules of other commands
        proletarian(prog_name="proletarian")
    from .bench import bench
    from .demo import demo
    from .migrate import migrate

    for command in (migrate, demo, bench):
        proletarian.add_command(command)
    proletarian(prog_name="proletarian")
