"""``proletarian demo``: runs the queue on a PostgreSQL server and verifies the results.

The sample application is in :mod:`.app`, the database setup in :mod:`.stage`. The demo creates the
schema ``proletarian_demo``, which must not exist, uses nothing else, and drops it at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine, func, make_url, select

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
    SignUps,
    sign_up,
    welcome_mails,
)
from .facts import Facts, read_facts, summary
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
        facts = read_facts(self.engine, self.people.rolled_back)
        self.console.print(summary(facts))
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
                progress.update(bar, failed=1)

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

    def _claims(self, facts: Facts) -> Iterator[tuple[str, bool]]:
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


def _say(console: Console, text: str, *, holds: bool = True) -> None:
    marks = ("ok", "FAILED") if console.options.ascii_only else ("✓", "✗")
    mark = f"[green]{marks[0]}[/]" if holds else f"[bold red]{marks[1]}[/]"
    console.print(f"{mark} {escape(text)}")
