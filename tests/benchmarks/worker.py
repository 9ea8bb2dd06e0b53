"""The worker process of a contender: ``… -m tests.benchmarks.worker MODULE:CLASS URL SETTINGS``.

It runs until it is killed. The harness reads its progress from the shared marks.
"""

from __future__ import annotations

import importlib
import json
import sys

from .contender import Contender, Settings

if __name__ == "__main__":
    path, dsn, settings = sys.argv[1:]
    module, _, name = path.partition(":")
    contender: type[Contender] = getattr(importlib.import_module(module), name)
    contender(dsn).work(Settings(**json.loads(settings)))
