"""Processes that were forked after their engine was used, as by a server that preloads the program.

The child inherits the open connections in the engine's pool. Its parent and its siblings have them,
too: whoever uses one reads the answers of the others.
"""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

_LOADED_IN = os.getpid()

_cleared_in: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()


def forget_inherited(engine: Engine) -> None:
    """Let an engine use connections of this process only, if that was forked.

    Those of the parent stay open there.
    """
    process = os.getpid()
    if process not in (_LOADED_IN, _cleared_in.get(engine)):
        engine.dispose(close=False)
        _cleared_in[engine] = process
