"""When a job is moved to the archive again, after the archive rejected its row.

The cause is the archive, for example a column of its own that is NOT NULL, or a row with the same
id. No run of the handler can change that. So

- if a *successful* job is rejected, the attempt has failed, because the handler's writes are rolled
  back with it. The retry strategy decides what follows.
- a job that *failed or was cancelled* stays in its queue, and its handler does not run again. The
  worker tries to archive it after 1 minute, then after twice as long each time, up to 1 hour.

The row keeps the state in columns of its own: ``ended_as``, ``ended_at`` and ``refusal``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from .outcomes import Cancelled, Failed, Refused

FIRST_DELAY: Final = timedelta(minutes=1)
LONGEST_DELAY: Final = timedelta(hours=1)


def refused(
    outcome: Failed | Cancelled, refusal: str, now: datetime, ended_at: datetime | None
) -> Refused:
    """Return the outcome of a job that ended, and whose row the archive rejected.

    The delay is the time since the job ended, so it doubles each time.

    :param refusal: the error of the database.
    :param ended_at: when the job ended; None if it ended now.
    """
    ended_at = ended_at or now
    delay = min(max(now - ended_at, timedelta(0)) + FIRST_DELAY, LONGEST_DELAY)
    return Refused(
        now + delay, outcome.error, outcome.counted, outcome.status.value, ended_at, refusal
    )
