"""Handling of processes that were forked after their engine was used, as by a preloading server.

The child inherits the open connections in the engine's pool. Its parent and its siblings share
them, so that each process may read the answers to statements of the others.
"""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

_LOADED_IN = os.getpid()

_cleared_in: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()


def discard_inherited(engine: Engine) -> None:
    """Discard the pooled connections that a forked process has inherited from its parent.

    The connections stay open in the parent.
    """
    process = os.getpid()
    if process not in (_LOADED_IN, _cleared_in.get(engine)):
        engine.dispose(close=False)
        _cleared_in[engine] = process
