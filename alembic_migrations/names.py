"""The names of the tables: defaults and checks, used by the steps and the filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from alembic import context

DEFAULT_SCHEMA: Final = "proletarian"
"""The schema of the job tables.

.. versionadded:: 0.1
"""

VERSION_TABLE: Final = "alembic_version_proletarian"
"""The version table of ``proletarian migrate``. It is separate from your ``alembic_version``, and
not in the schema of the job tables, so that a downgrade can drop that schema.

.. versionadded:: 0.1
"""

ATTRIBUTE: Final = "proletarian"
"""The attribute of Alembic's configuration that contains the names for the shipped branch."""


def configured() -> dict[str, Any]:
    """Return the names that the user's ``env.py`` sets for the shipped branch, if any."""
    return dict(context.config.attributes.get(ATTRIBUTE, {}))


@dataclass(frozen=True)
class TableNames:
    """The names of the tables and of their schema."""

    table: str
    archived: str
    running: str
    paused: str
    recurring: str
    places: str
    schema: str | None
    partition_archive: str | None = None
    """ "month", if the archive is created partitioned by month."""

    @property
    def tables(self) -> frozenset[str]:
        """The names of all tables."""
        return frozenset(self._listed())

    def _listed(self) -> list[str]:
        return [
            self.table,
            self.archived,
            self.running,
            self.paused,
            self.recurring,
            self.places,
        ]

    @classmethod
    def of(
        cls,
        table: object,
        archived: object,
        running: object,
        paused: object,
        recurring: object,
        *,
        places: object,
        schema: object,
        partition_archive: object = None,
    ) -> TableNames:
        """Return the names with defaults filled in; raise ``ValueError`` if they are not valid."""
        job = _checked("table", table)
        names = cls(
            table=job,
            archived=_checked("archived_table", archived, f"archived_{job}"),
            running=_checked(
                "running_table", running, "running" if job == "job" else f"running_{job}"
            ),
            paused=_checked(
                "paused_table", paused, "paused_queue" if job == "job" else f"paused_{job}"
            ),
            recurring=_checked(
                "recurring_table", recurring, "recurring" if job == "job" else f"recurring_{job}"
            ),
            places=_checked(
                "places_table", places, "limit_place" if job == "job" else f"places_{job}"
            ),
            schema=None if schema is None else _checked("schema", schema),
            partition_archive=_checked_partition(partition_archive),
        )
        given = names._listed()
        if len(names.tables) < len(given):
            msg = f"the tables need different names, not {', '.join(map(repr, given))}"
            raise ValueError(msg)
        return names


def _checked_partition(given: object) -> str | None:
    if given is None or given == "month":
        return None if given is None else "month"
    msg = f"partition_archive must be 'month' or None, not {given!r}"
    raise ValueError(msg)


def _checked(parameter: str, name: object, default: str | None = None) -> str:
    if name is None and default is not None:
        return default
    if not isinstance(name, str) or not name.strip():
        msg = f"{parameter} must be a non-empty string, not {name!r}"
        raise ValueError(msg)
    return name
