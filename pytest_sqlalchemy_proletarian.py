"""A plugin for pytest: the fixture ``proletarian_clock``.

It imports the library when a test uses the fixture, so it costs other tests nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy_proletarian.testing import FrozenClock

__all__ = ["proletarian_clock"]


@pytest.fixture
def proletarian_clock() -> Iterator[FrozenClock]:
    """Freeze the time of the library in this test, and yield the clock.

    Move it forward with ``proletarian_clock.advance(timedelta(hours=1))``.
    """
    from sqlalchemy_proletarian.testing import FrozenClock

    with FrozenClock() as clock:
        yield clock
