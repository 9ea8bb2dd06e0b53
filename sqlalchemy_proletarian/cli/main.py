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
    from .bench import bench
    from .demo import demo
    from .enqueue import enqueue
    from .jobs import jobs
    from .migrate import migrate
    from .prune import prune
    from .queues import queues
    from .recurring import recurring
    from .status import status

    for command in (status, jobs, queues, recurring, enqueue, prune, migrate, demo, bench):
        proletarian.add_command(command)
    proletarian(prog_name="proletarian")
