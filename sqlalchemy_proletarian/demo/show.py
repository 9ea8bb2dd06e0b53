"""``proletarian demo``: runs the queue on a PostgreSQL server and verifies the results.

The sample application is in :mod:`.demo_app`, the database setup in :mod:`.demo_stage`. The demo
creates the schema ``proletarian_demo``, which must not exist, uses nothing else, and drops it at
the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import JSON, Engine, cast, func, make_url, select, union_all
from sqlalchemy.orm import Session

from ..handlers.registry import Handlers
from ..models.values import Status
from ..worker.threaded import QueueWorker
from .app import (
    RETRY,
    SCHEMA,
    ArchivedJob,
    Job,
    MailServer,
    RunningJob,
    SignUp,
    SignUps,
    sign_up,
    welcome_mails,
)
from .stage import Interrupted, interruptible, open_engine, open_server, quiet_log, tables

__all__ = ["run_demo"]

SIGN_UPS = 160
THREADS = 4

PATIENCE = 60.0
"""Seconds that the demo waits for the worker at most."""

RETRIES_TOLD = 3
"""Number of retries that are printed one by one; the others are only counted."""


def run_demo(url: str | None, console: Console) -> None:
    """Run the demo and remove everything that it created.

    :param url: the database to use; by default a temporary server that the demo starts and removes.
    :param console: the console for the output.
    :raises DemoError: if the database is not PostgreSQL, or has a schema ``proletarian_demo``.
    :raises SystemExit: with 1 if a check failed; with 128 plus the number of the signal if a signal
        ended the demo.

    .. versionadded:: 0.1
    """
    what = f"the schema {SCHEMA}" if url else "the PostgreSQL server of the demo"
    try:
        with interruptible(), quiet_log():
            as_claimed = _run(url, console)
    except Interrupted as interrupted:
        console.print(f"Interrupted: removed {what}.")
        sys.exit(128 + interrupted.number)
    console.print(f"Removed {what}.")
    if not as_claimed:
        sys.exit(1)


def _run(url: str | None, console: Console) -> bool:
    started = monotonic()
    with (
        open_server(make_url(url) if url else None, console) as server_url,
        open_engine(server_url) as engine,
    ):
        with engine.connect() as connection:
            version = connection.scalar(select(func.current_setting("server_version"))) or "?"
        which = "your server" if url else f"started in {monotonic() - started:.1f} s for this demo"
        _say(console, f"PostgreSQL {version.split()[0]}, {which}")
        with tables(engine):
            _say(console, f"Alembic created the tables in the schema {SCHEMA}")
            return _Show(engine, console).run()


@dataclass(frozen=True)
class _Facts:
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


class _Show:
    """People sign up, a worker sends their mails, and the contents of the tables are checked."""

    def __init__(self, engine: Engine, console: Console) -> None:
        self.engine = engine
        self.console = console
        self.mail_server = MailServer()
        self.people = SignUps()
        self.retries = 0

    def run(self) -> bool:
        """Run the demo, and return whether all checks passed."""
        handlers, send_welcome = welcome_mails(self.mail_server)
        with self.console.status("Signing up people"):
            for address, pays in _addresses():
                sign_up(self.engine, address, send_welcome, self.people, pays=pays)
        people = self.people
        _say(self.console, f"{SIGN_UPS} people sign up, each in a transaction that enqueues a job")
        self.console.print(
            f"    [green]{people.committed:>3} committed[/]\n"
            f"    [yellow]{len(people.rolled_back):>3} rolled back[/], their jobs with them "
            f"({len(people.declined)} cards declined, {len(people.taken)} addresses taken)"
        )
        _say(
            self.console,
            f"A worker with {THREADS} threads sends the mails; the server is flaky",
        )
        self._work(handlers)
        facts = self._read()
        self.console.print(_summary(facts))
        claims = list(self._claims(facts))
        for text, holds in claims:
            _say(self.console, text, holds=holds)
        return all(holds for _, holds in claims)

    def _work(self, handlers: Handlers) -> None:
        progress = Progress(
            TextColumn("   "),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("[yellow]{task.fields[retries]} retries"),
            TextColumn("[red]{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            console=self.console,
        )
        bar = progress.add_task("", total=self.people.committed, retries=0, failed=0)

        def log(event: str, data: Mapping[str, Any]) -> None:
            if event == "job-finished":
                progress.advance(bar)
            elif event == "handle-job-exception":
                self._tell(data["attempt"], data["error"])
            elif event == "retrying":
                self.retries += 1
                progress.update(bar, retries=self.retries)
            elif event == "not-retrying":
                progress.update(bar, advance=1, failed=1)

        worker = QueueWorker(
            self.engine,
            handlers,
            threads=THREADS,
            job_model=Job,
            archived_job_model=ArchivedJob,
            running_job_model=RunningJob,
            shutdown_timeout=timedelta(seconds=5),
            log=log,
        )
        give_up = monotonic() + PATIENCE
        with progress, worker:
            while not progress.finished and monotonic() < give_up:
                sleep(0.02)

    def _tell(self, attempt: int, error: Exception) -> None:
        """Print the first retries and the final failure."""
        final = attempt > RETRY.retries
        if final or self.retries < RETRIES_TOLD:
            then = "[red]no retry left[/]" if final else "[yellow]retry later[/]"
            self.console.print(f"      attempt {attempt}: {escape(str(error))}: {then}")

    def _read(self) -> _Facts:
        payloads = union_all(select(Job.payload), select(ArchivedJob.payload)).subquery()
        person = func.json_extract_path_text(cast(payloads.c.payload, JSON), "sign_up_id")
        gone = [str(sign_up_id) for sign_up_id in self.people.rolled_back]
        queued = select(func.count()).select_from(Job)
        archive = (
            select(ArchivedJob.status, ArchivedJob.attempts, func.count())
            .group_by(ArchivedJob.status, ArchivedJob.attempts)
            .order_by(ArchivedJob.status.desc(), ArchivedJob.attempts)
        )
        mails = select(SignUp.mails, func.count()).group_by(SignUp.mails)
        ghosts = select(func.count()).select_from(payloads).where(person.in_(gone))
        with Session(self.engine) as session:
            return _Facts(
                queued=session.scalars(queued).one(),
                archive=[(row[0], row[1], row[2]) for row in session.execute(archive)],
                mails={row[0]: row[1] for row in session.execute(mails)},
                ghosts=session.scalars(ghosts).one(),
            )

    def _claims(self, facts: _Facts) -> Iterator[tuple[str, bool]]:
        """Yield the claims of the demo, each with whether it holds."""
        people, server = self.people, self.mail_server
        sent, failed = facts.archived(Status.SUCCESS), facts.archived(Status.FAILURE)
        undone, ended = len(people.rolled_back), sent + failed
        text = f"{people.committed} sign-ups committed, {ended} jobs ended, {facts.queued} queued"
        yield text, people.committed == ended and facts.queued == 0
        text = f"{undone} sign-ups rolled back, {facts.ghosts} of their jobs in either table"
        yield text, undone > 0 and facts.ghosts == 0
        text = f"{server.refused} mails refused: {facts.retries} retries, {failed} final failure"
        yield text, server.refused == facts.retries + failed and failed == 1
        text = f"{sent} people have exactly one mail recorded, {failed} has none"
        yield text, facts.mails == {0: failed, 1: sent}
        text = f"{len(server.accepted)} mails sent to {len(set(server.accepted))} addresses"
        yield text, len(server.accepted) == len(set(server.accepted)) == sent


def _addresses() -> Iterator[tuple[str, bool]]:
    """Yield each address that signs up, and whether the card is accepted; always the same."""
    yield "nobody@example.com", True
    for number in range(1, SIGN_UPS):
        again = number % 20 == 0  # with the address of the previous person
        yield f"user{number - again:03}@example.com", number % 16 != 1


def _summary(facts: _Facts) -> Padding:
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


def _say(console: Console, text: str, *, holds: bool = True) -> None:
    marks = ("ok", "FAILED") if console.options.ascii_only else ("✓", "✗")
    mark = f"[green]{marks[0]}[/]" if holds else f"[bold red]{marks[1]}[/]"
    console.print(f"{mark} {escape(text)}")
