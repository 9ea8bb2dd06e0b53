"""When a process is replaced: after some jobs, or when it takes much memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Final

from .parameters import size_text
from .plan import Plan

_INTERVAL: Final = 0.1
"""Seconds between two checks. Nothing is done for each job."""


def memory() -> int:
    """Return the memory of this process, in bytes: the resident set.

    Where the system has no /proc it is the largest that the resident set has been.
    """
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def watch_limits(
    plan: Plan, runs: Callable[[], int], exceeded: Callable[[str], object], ended: Event
) -> None:
    """Call ``exceeded`` with the reason when a limit is exceeded, once, in another thread.

    :param runs: returns how many jobs the worker has run.
    :param ended: set when the worker has ended.
    """

    def watch() -> None:
        while not ended.wait(_INTERVAL):
            reason = _reason(plan, runs())
            if reason is not None:
                exceeded(reason)
                return

    Thread(target=watch, name="limits", daemon=True).start()


def _reason(plan: Plan, ran: int) -> str | None:
    if plan.max_jobs is not None and ran >= plan.max_jobs:
        return f"it has run {ran} jobs"
    if plan.max_memory is not None and (size := memory()) > plan.max_memory:
        return f"it takes {size_text(size)} of memory"
    return None
