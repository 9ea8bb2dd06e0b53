"""The filters of a list of jobs, as they stand in an address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlencode

from ..manage import JobState
from ..models.values import Status

STATES: Final = ("queued", *map(str, JobState), "archived", *map(str, Status))
"""What a list can be limited to; the first one is the default."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"([0-9]{1,9})\s*([smhdw])")


@dataclass(frozen=True)
class Filters:
    """What a list shows; empty texts are no filter."""

    state: str = ""
    queue: str = ""
    type: str = ""
    newer: str = ""
    """A duration such as ``2h``: only jobs that were enqueued, or have ended, since then."""
    older: str = ""
    text: str = ""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Filters:
        """Return the filters of a query or a form."""
        return cls(**{f.name: values.get(f.name, "").strip() for f in fields(cls)})

    @property
    def problem(self) -> str:
        """What is wrong with the filters; an empty text if nothing is."""
        if self.state and self.state not in STATES:
            return f"There is no state {self.state!r}."
        for name in ("newer", "older"):
            text = getattr(self, name)
            if text and not _DURATION.fullmatch(text):
                return f"{text!r} is no duration: write a number and s, m, h, d or w, such as 2h."
        return ""

    def arguments(self) -> dict[str, Any]:
        """Return the filters as arguments of :func:`.list_jobs`."""
        return {
            "status": self.state or "queued",
            "queue": self.queue or None,
            "job_type": self.type or None,
            "newer_than": _duration(self.newer),
            "older_than": _duration(self.older),
            "text": self.text or None,
        }

    def items(self) -> list[tuple[str, str]]:
        """Return the filters that are set, with their names."""
        return [(f.name, value) for f in fields(self) if (value := getattr(self, f.name))]

    def query(self, **changed: str) -> str:
        """Return the part of an address, with some filters changed."""
        own = {name: value for name, value in changed.items() if name in _NAMES}
        others = {name: value for name, value in changed.items() if name not in _NAMES}
        return urlencode([*replace(self, **own).items(), *others.items()])

    @property
    def is_archived(self) -> bool:
        """Whether the list is of archived jobs."""
        return self.state in {"archived", *map(str, Status)}


_NAMES: Final = frozenset(f.name for f in fields(Filters))


def _duration(text: str) -> timedelta | None:
    found = _DURATION.fullmatch(text)
    return None if found is None else timedelta(seconds=int(found[1]) * _UNITS[found[2]])
