"""The mixin for the table of the places of limits."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import ColumnDefault
from sqlalchemy import event as sa_event
from sqlalchemy.orm import Mapped, Mapper, mapped_column

from ..clock import utcnow
from ..database.column_types import ID, LONG_TEXT, NAME, TIME
from .checks import refuse_pydantic
from .job_tables import complete_places
from .mixins import _complete, _Fieldless


class LimitPlaceMixin:
    """A table of the places of limits, for your own declarative base.

    A limit of 2 jobs at a time has the places 1 and 2. Workers create the rows when they need them.
    A job in transaction mode holds its place by a lock on the row. A leased job is named in the
    row, and the place is free when the job no longer has this lease. One table belongs to one job
    table.

    * ``name`` is the job type, followed by a slash and the key if the type has a
      ``concurrency_key``. ``number`` counts from 1.
    * ``job_id`` and ``lease_id`` are the last job that held the place by a lease.
    * The row with the name "type@rate" and the number 0 has in ``starts`` when the last jobs of the
      type were started.
    * ``created_at``: the row of a place that is free is deleted after some time.

    .. versionadded:: 0.1
    """

    __dataclass_fields__: ClassVar[_Fieldless] = _Fieldless()

    name: Mapped[str] = mapped_column(
        NAME,
        primary_key=True,
        sort_order=-90,
        doc="The job type, or 'type/key' with a concurrency_key; 'type@rate' for a rate.",
    )
    number: Mapped[int] = mapped_column(
        primary_key=True,
        autoincrement=False,
        sort_order=-89,
        doc="The number of the place, from 1; 0 in the row of a rate.",
    )
    job_id: Mapped[UUID | None] = mapped_column(
        ID, default=None, sort_order=-88, doc="The last job that held the place by a lease."
    )
    lease_id: Mapped[UUID | None] = mapped_column(
        ID, default=None, sort_order=-87, doc="The lease of that job."
    )
    starts: Mapped[str | None] = mapped_column(
        LONG_TEXT,
        default=None,
        sort_order=-86,
        doc="When the last jobs of the type started; only in the row of a rate.",
    )
    created_at: Mapped[datetime] = mapped_column(
        TIME,
        default=ColumnDefault(utcnow),
        sort_order=-85,
        doc="When the row was created. The row of a free place is deleted after some time.",
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        refuse_pydantic(cls)
        super().__init_subclass__(**kwargs)


@sa_event.listens_for(LimitPlaceMixin, "after_mapper_constructed", propagate=True)
def _complete_places(mapper: Mapper[Any], class_: type[Any]) -> None:
    _complete(mapper, class_, LimitPlaceMixin, complete_places)
