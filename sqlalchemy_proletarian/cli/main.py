"""The entry point of the ``proletarian`` command; the commands are in :mod:`.commands`."""

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
    from .commands import proletarian

    proletarian(prog_name="proletarian")
