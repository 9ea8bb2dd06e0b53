"""The mixin for a table of recurring jobs: what to enqueue, and when."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import SmallInteger, text
from sqlalchemy import event as sa_event
from sqlalchemy.orm import Mapped, Mapper, mapped_column, validates

from ..clock import require_aware
from ..database.column_types import LONG_TEXT, NAME, TIME
from .checks import refuse_pydantic
from .job_tables import complete_recurring
from .mixins import _complete, _Fieldless
from .values import DEFAULT_PRIORITY, DEFAULT_QUEUE, NO_PAYLOAD, UTC_ZONE, CatchUp


class RecurringJobMixin:
    """A table of recurring jobs, for your own declarative base.

    A row says which job is enqueued at each tick, and when the next tick is. Operators may read
    and edit it; workers follow what they find. One table belongs to one job table.

    * ``cron`` or ``interval_seconds`` gives the ticks, the other one is NULL. ``time_zone`` is the
      zone of ``cron``.
    * ``queue``, ``job_type``, ``payload`` (encoded) and ``priority`` are those of the jobs.
    * ``catch_up`` says which of several ticks that are due at once are enqueued: "last", "none" or
      "all".
    * ``next_at`` is the next tick. If it is NULL, a worker calculates it: set it to NULL after you
      have changed ``cron``, ``interval_seconds`` or ``time_zone``. ``last_at`` is the last tick
      that was enqueued.
    * ``paused``: the ticks of a paused row pass without a job.
    * ``owner`` is NULL for rows of :func:`.manage.schedule`. For rows of
      :meth:`.Handlers.recurring` it is the ``owner`` of these handlers.
    * ``fingerprint``, ``superseded`` and ``confirmed_at`` are for workers only: the definition that
      the row was made from, the definitions before it, and when a worker that has this definition
      last reported it.

    .. versionadded:: 0.1
    """

    __dataclass_fields__: ClassVar[_Fieldless] = _Fieldless()

    name: Mapped[str] = mapped_column(
        NAME, primary_key=True, sort_order=-90, doc="The name of the recurring job."
    )
    cron: Mapped[str | None] = mapped_column(
        NAME,
        default=None,
        sort_order=-89,
        doc="The cron expression; NULL if interval_seconds is set.",
    )
    interval_seconds: Mapped[int | None] = mapped_column(
        default=None, sort_order=-88, doc="The seconds from tick to tick; NULL if cron is set."
    )
    time_zone: Mapped[str] = mapped_column(
        NAME,
        default=UTC_ZONE,
        server_default=text(f"'{UTC_ZONE}'"),
        sort_order=-87,
        doc="The time zone of cron.",
    )
    queue: Mapped[str] = mapped_column(
        NAME,
        default=DEFAULT_QUEUE,
        server_default=text(f"'{DEFAULT_QUEUE}'"),
        sort_order=-80,
        doc="The queue of the jobs.",
    )
    job_type: Mapped[str] = mapped_column(
        NAME, default=None, sort_order=-79, doc="The type of the jobs."
    )
    payload: Mapped[str] = mapped_column(
        LONG_TEXT,
        default=NO_PAYLOAD,
        sort_order=-78,
        doc="The payload of the jobs, as the serializer encoded it.",
    )
    priority: Mapped[int] = mapped_column(
        SmallInteger,
        default=DEFAULT_PRIORITY,
        server_default=text(str(DEFAULT_PRIORITY)),
        sort_order=-77,
        doc="The priority of the jobs.",
    )
    catch_up: Mapped[str] = mapped_column(
        NAME,
        default=CatchUp.LAST.value,
        server_default=text(f"'{CatchUp.LAST.value}'"),
        sort_order=-76,
        doc="Which of several due ticks are enqueued: 'last', 'none' or 'all'.",
    )
    next_at: Mapped[datetime | None] = mapped_column(
        TIME,
        default=None,
        sort_order=-70,
        doc="The next tick. NULL makes a worker calculate it, for example from a new cron.",
    )
    last_at: Mapped[datetime | None] = mapped_column(
        TIME, default=None, sort_order=-69, doc="The last tick that was enqueued."
    )
    paused: Mapped[bool] = mapped_column(
        default=False,
        server_default=text("'0'"),
        sort_order=-68,
        doc="Whether the ticks pass without a job.",
    )
    owner: Mapped[str | None] = mapped_column(
        NAME,
        default=None,
        sort_order=-60,
        doc="The owner of the handlers that define it; NULL if schedule() created it.",
    )
    fingerprint: Mapped[str | None] = mapped_column(
        NAME,
        default=None,
        sort_order=-59,
        doc="The definition that the row was made from; for workers only.",
    )
    superseded: Mapped[str | None] = mapped_column(
        LONG_TEXT,
        default=None,
        sort_order=-58,
        doc="The definitions before that; for workers only.",
    )
    confirmed_at: Mapped[datetime | None] = mapped_column(
        TIME,
        default=None,
        sort_order=-57,
        doc="When a worker that has this definition last reported it; for workers only.",
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        refuse_pydantic(cls)
        super().__init_subclass__(**kwargs)

    @validates("next_at", "last_at", "confirmed_at")
    def _require_aware(self, name: str, value: datetime | None) -> datetime | None:
        return None if value is None else require_aware(name, value)

    def __repr__(self) -> str:
        loaded = vars(self)
        when = loaded.get("cron") or f"every {loaded.get('interval_seconds')} s"
        return f"<{type(self).__name__} {loaded.get('name')!r} {when}>"


@sa_event.listens_for(RecurringJobMixin, "after_mapper_constructed", propagate=True)
def _complete_recurring(mapper: Mapper[Any], class_: type[Any]) -> None:
    _complete(mapper, class_, RecurringJobMixin, complete_recurring)
