"""A clock that a test sets."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Self

from ..clock import as_timedelta, require_aware, substituted, utcnow

__tracebackhide__ = True  # pytest shows the line of the test instead


class FrozenClock:
    """A clock that stands still until a test moves it forward.

    Pass it as ``clock=`` wherever the library takes one. Code that you test usually enqueues
    without a ``clock=``: in a ``with`` block, the clock is also the default of that option, in all
    threads of the process. The fixture ``proletarian_clock`` is such a block. ::

        with FrozenClock() as clock:
            remind(session, tomorrow)
            assert drain(session, handlers) == []
            clock.advance(timedelta(days=1))
            assert len(drain(session, handlers)) == 1

    ``datetime.now()`` in your own code is not changed.

    :param now: the time that it shows first, an aware datetime; by default the current time.
    :raises TypeError: if ``now`` is not a datetime.
    :raises ValueError: if ``now`` has no time zone.

    .. versionadded:: 0.1
    """

    def __init__(self, now: datetime | None = None) -> None:
        self._now = utcnow() if now is None else require_aware("now", now)
        self._blocks: list[ExitStack] = []

    def __call__(self) -> datetime:
        """Return the time that the clock shows."""
        return self._now

    def advance(self, by: timedelta) -> datetime:
        """Move the clock forward, and return the time that it shows then.

        :param by: a timedelta, or an int of milliseconds.
        :raises TypeError: if ``by`` is neither.
        :raises ValueError: if ``by`` is negative.
        """
        self._now += as_timedelta("by", by)
        return self._now

    def advance_to(self, time: datetime) -> datetime:
        """Move the clock forward to a time, such as the ``process_at`` of a retry; return it.

        :param time: an aware datetime.
        :raises TypeError: if ``time`` is not a datetime.
        :raises ValueError: if ``time`` has no time zone, or the clock is past it.
        """
        if require_aware("time", time) < self._now:
            msg = f"the clock shows {self._now.isoformat()}, which is after {time.isoformat()}"
            raise ValueError(msg)
        self._now = time
        return time

    def __enter__(self) -> Self:
        block = ExitStack()
        block.enter_context(substituted(self))
        self._blocks.append(block)
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.pop().close()

    def __repr__(self) -> str:
        return f"<FrozenClock {self._now.isoformat()}>"
