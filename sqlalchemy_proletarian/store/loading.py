"""Loading the mapped objects of claimed jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select
from sqlalchemy.orm import Session, lazyload
from sqlalchemy.orm.attributes import set_committed_value

from ..lifecycle.claimed import ClaimedJob
from ..models.job_classes import class_of
from ..models.mixins import JobMixin


class JobLoader:
    """Loads jobs as objects of the class of their type.

    :param of_ids: the condition on the rows whose ids are in the parameter ``ids``.
    """

    def __init__(self, job_model: type[JobMixin], of_ids: ColumnElement[bool]) -> None:
        self._job_model = job_model
        self._of_ids = of_ids
        self._statements: dict[type[JobMixin], Select[*tuple[Any, ...]]] = {}

    def load(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> dict[Any, Any]:
        """Return the mapped objects of claimed jobs, detached, by job id.

        ``attempts`` counts the current attempt, and ``process_at`` is when the job came due.
        """
        claimed = {job.job_id: job for job in jobs}
        ids_by_class: dict[type[JobMixin], list[Any]] = {}
        for job in claimed.values():
            ids_by_class.setdefault(class_of(self._job_model, job.job_type), []).append(job.job_id)
        found: list[Any] = []
        with Session(connection) as session:
            for model, ids in ids_by_class.items():
                found += session.scalars(self._statement(model), {"ids": ids})
            session.expunge_all()
        for row in found:
            job = claimed[row.job_id]
            set_committed_value(row, "attempts", job.attempts)
            if job.process_at is not None:
                set_committed_value(row, "process_at", job.process_at)
        return {row.job_id: row for row in found}

    def _statement(self, model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
        if model not in self._statements:
            # Relationships are loaded later, in the handler's own session.
            statement = select(model).where(self._of_ids).options(lazyload("*"))
            self._statements[model] = statement
        return self._statements[model]
