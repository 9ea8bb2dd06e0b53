"""Which ``.py`` files below a directory have changed.

It looks at the files instead of asking the system for notifications. This needs no other package,
and also sees changes in directories that a container or virtual machine shares with its host. A
thousand files take some milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

INTERVAL: Final = 0.5
"""Seconds between two looks."""

_SKIPPED: Final = {"__pycache__", "node_modules", "site-packages"}


class FileWatch:
    """Watches the ``.py`` files of a directory and those below it.

    Hidden directories and virtual environments are skipped.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._before = dict(_files(root))

    def changed(self) -> list[str]:
        """Return the files that were changed, added or removed since the last call."""
        now = dict(_files(self._root))
        before, self._before = self._before, now
        if now == before:
            return []
        names = sorted(name for name, _ in now.items() ^ before.items())
        return [os.path.relpath(name, self._root) for name in dict.fromkeys(names)]


def _files(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    folders = [str(root)]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:  # removed, or not ours to read
            continue
        if any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith(".") and entry.name not in _SKIPPED:
                    folders.append(entry.path)
            elif entry.name.endswith(".py"):
                try:
                    found = entry.stat()
                except OSError:
                    continue
                yield entry.path, (found.st_mtime_ns, found.st_size)
