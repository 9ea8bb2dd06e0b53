"""The contents of the tables at the end of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from rich.padding import Padding
from rich.table import Table
from sqlalchemy import JSON, Engine, cast, func, select, union_all
from sqlalchemy.orm import Session

from ..models.values import Status
from .app import ArchivedJob, Job, SignUp


@dataclass(frozen=True)
class Facts:
    """The contents of the tables at the end of the demo."""

    queued: int
    archive: list[tuple[str, int, int]]
    """Status, attempts, and the number of jobs that ended with both."""
    mails: dict[int, int]
    """The number of people, by the number of mails that is recorded for them."""
    ghosts: int
    """Jobs of people whose sign-up was rolled back."""

    def archived(self, status: Status) -> int:
        """Return the number of jobs that ended with a status."""
        return sum(jobs for kind, _, jobs in self.archive if kind == status)

    @property
    def retries(self) -> int:
        """The number of attempts that were not the first attempt of their job."""
        return sum((attempts - 1) * jobs for _, attempts, jobs in self.archive)


def read_facts(engine: Engine, rolled_back: list[UUID]) -> Facts:
    """Read the tables.

    :param rolled_back: the sign-ups that were rolled back; none of their jobs may exist.
    """
    payloads = union_all(select(Job.payload), select(ArchivedJob.payload)).subquery()
    person = func.json_extract_path_text(cast(payloads.c.payload, JSON), "sign_up_id")
    gone = [str(sign_up_id) for sign_up_id in rolled_back]
    queued = select(func.count()).select_from(Job)
    archive = (
        select(ArchivedJob.status, ArchivedJob.attempts, func.count())
        .group_by(ArchivedJob.status, ArchivedJob.attempts)
        .order_by(ArchivedJob.status.desc(), ArchivedJob.attempts)
    )
    mails = select(SignUp.mails, func.count()).group_by(SignUp.mails)
    ghosts = select(func.count()).select_from(payloads).where(person.in_(gone))
    with Session(engine) as session:
        return Facts(
            queued=session.scalars(queued).one(),
            archive=[(row[0], row[1], row[2]) for row in session.execute(archive)],
            mails={row[0]: row[1] for row in session.execute(mails)},
            ghosts=session.scalars(ghosts).one(),
        )


def summary(facts: Facts) -> Padding:
    """Return a printable table of the facts."""
    table = Table(title="Contents of the tables", title_justify="left", title_style="bold")
    table.add_column("table", min_width=14)
    table.add_column("", min_width=14)
    table.add_column("attempts", justify="right")
    table.add_column("rows", justify="right")
    for mails, people in sorted(facts.mails.items(), reverse=True):
        table.add_row("sign_up", f"{mails or 'no'} mail recorded", "", str(people))
    table.add_section()
    table.add_row("job", "queued", "", str(facts.queued))
    table.add_section()
    for status, attempts, jobs in facts.archive:
        style = "red" if status == Status.FAILURE else "green"
        table.add_row("archived_job", f"[{style}]{status}[/]", str(attempts), str(jobs))
    return Padding(table, (1, 0, 1, 2))
