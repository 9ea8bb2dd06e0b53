"""What the limits of a worker's handlers are, as far as this subpackage knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection

from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.limits import Limit


@dataclass
class Named:
    """The names of the places that jobs need."""

    names: dict[Any, str] = field(default_factory=dict)
    """By job id; a job that needs no place has none."""
    errors: dict[Any, Exception] = field(default_factory=dict)
    """The jobs whose name could not be determined, with the errors."""


class LimitRules(Protocol):
    """The limits of the job types of one worker."""

    def knows(self, job_type: str) -> bool:
        """Return whether the worker has a handler for a type."""
        ...

    def limit_of(self, job_type: str) -> Limit | None:
        """Return the limit of a type; None if it has none."""
        ...

    def name(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> Named:
        """Return the names of the places that jobs need."""
        ...

    def rates(self) -> Sequence[str]:
        """Return the types that have a rate."""
        ...
