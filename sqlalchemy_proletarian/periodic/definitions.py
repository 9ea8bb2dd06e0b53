"""The recurring jobs that code defines, and how they and the table agree.

Workers of two releases may run side by side, with different definitions. No release has a number,
so a worker finds out from the row itself what to do with it:

* The row has its own definition: it *confirms* the row, once a minute.
* The row has another definition, which its own has not seen before: it *replaces* it, at once. The
  row remembers the definitions that were replaced.
* The row has a definition that has replaced its own: a later release wrote it. The worker *leaves*
  it, as long as workers of the later release confirm it. When none has done so for two minutes, for
  example after a rollback, it replaces it.
* The row has another owner: the worker reports that and leaves it, unless no worker has confirmed
  it for two minutes. It never touches a row that was created at run time.
* A row of its owner that it does not define, and that no worker has confirmed for two minutes while
  it watched, is *removed*; but a paused row stays.

So each change of a row follows from the start or the end of a release, and none is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, Literal

from ..producer.values import require_name
from .timing import Timing

GONE: Final = timedelta(minutes=2)
"""A definition that was not confirmed for so long is that of no running worker."""

CONFIRM: Final = timedelta(seconds=30)
"""The age of a confirmation that another worker renews."""

MAX_NAME: Final = 200
"""Characters of a name. The ``unique_key`` of a job, at most 255, is the name with the tick."""

_REMEMBERED: Final = 20
_LENGTH: Final = 16

Action = Literal["add", "confirm", "replace", "leave", "refuse"]


@dataclass(frozen=True)
class Definition:
    """A recurring job as code defines it; its payload is encoded."""

    name: str
    timing: Timing
    queue: str
    job_type: str
    payload: str
    priority: int
    catch_up: str

    @property
    def values(self) -> dict[str, Any]:
        """The column values of its row, except the name."""
        return {
            "cron": self.timing.cron,
            "interval_seconds": self.timing.interval_seconds,
            "time_zone": self.timing.time_zone,
            "queue": self.queue,
            "job_type": self.job_type,
            "payload": self.payload,
            "priority": self.priority,
            "catch_up": self.catch_up,
        }

    @cached_property
    def fingerprint(self) -> str:
        """A text that is the same for equal definitions only."""
        text = json.dumps(self.values, sort_keys=True)
        return sha256(text.encode()).hexdigest()[:_LENGTH]

    def decide(self, row: Any, owner: str, now: datetime) -> Action:
        """Decide what to do with the row of this name.

        :param row: the row, or None if there is none.
        :param owner: the owner of this definition.
        """
        if row is None:
            return "add"
        if row.owner != owner:
            is_left = row.owner is not None and is_older(row.confirmed_at, now - GONE)
            return "replace" if is_left else "refuse"
        if row.fingerprint == self.fingerprint:
            return "confirm" if is_older(row.confirmed_at, now - CONFIRM) else "leave"
        if self.fingerprint in _superseded(row) and not is_older(row.confirmed_at, now - GONE):
            return "leave"
        return "replace"

    def replacing(self, row: Any, owner: str, now: datetime) -> dict[str, Any]:
        """Return the new values of a row; ``next_at`` only if the timing changes."""
        before = [name for name in _superseded(row) if name != self.fingerprint]
        superseded = [*before, row.fingerprint or "-"][-_REMEMBERED:]
        timing = Timing(row.cron, row.interval_seconds, row.time_zone)
        moved = {} if timing == self.timing else {"next_at": self.timing.after(now)}
        return {
            **self.values,
            **moved,
            "owner": owner,
            "fingerprint": self.fingerprint,
            "superseded": " ".join(superseded),
            "confirmed_at": now,
        }

    def adding(self, owner: str, now: datetime) -> dict[str, Any]:
        """Return the values of a new row."""
        return {
            "name": self.name,
            **self.values,
            "next_at": self.timing.after(now),
            "owner": owner,
            "fingerprint": self.fingerprint,
            "confirmed_at": now,
        }


def require_recurring_name(name: str) -> None:
    """Check the name of a recurring job.

    :raises TypeError: if it is not a string.
    :raises ValueError: if it does not have 1 to 200 characters.
    """
    require_name("name", name)
    if len(name) > MAX_NAME:
        msg = f"name must have at most {MAX_NAME} characters, not {len(name)}: {name!r:.100}"
        raise ValueError(msg)


def is_older(time: datetime | None, than: datetime) -> bool:
    """Return whether a row was not confirmed since a time."""
    return time is None or time < than


def _superseded(row: Any) -> Sequence[str]:
    return (row.superseded or "").split()
