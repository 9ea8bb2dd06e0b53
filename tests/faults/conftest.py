"""A server that the tests may break, and the length of the chaos."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest
from sqlalchemy import Engine, create_engine, text

from sqlalchemy_proletarian import migrate

from .fleet import KINDS, Fleet, Kind, fleet
from .nursery import Nursery, nursery
from .server import Server, own_server

LEDGER = "CREATE TABLE ledger (job_id uuid, worker integer, attempt integer)"

TEST = "the test itself"
"""The ``application_name`` of the test's own connections."""

RECOVERY = "seconds to recovery"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long workers took to go on after each fault, as docs/reliability.md has it."""
    taken: dict[tuple[str, str], list[float]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            what, _, fault = name.partition(": ")
            if what == RECOVERY:
                held, seconds = str(value).split()
                taken.setdefault((fault, held), []).append(float(seconds))
    if taken:
        terminalreporter.section(RECOVERY)
    for (fault, held), seconds_taken in sorted(taken.items()):
        terminalreporter.write_line(
            f"{fault:40} {held:12} median {median(seconds_taken):5.1f}  "
            f"longest {max(seconds_taken):5.1f}  of {len(seconds_taken)}"
        )


@pytest.fixture(scope="session")
def _nursery() -> Iterator[Nursery]:
    with nursery() as started:
        yield started


@pytest.fixture(scope="session")
def _breakable() -> Iterator[Server]:
    with own_server() as server:
        url = server.url()
        migrate.upgrade(url)
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text(LEDGER))
        engine.dispose()
        yield server


@pytest.fixture
def server(_breakable: Server) -> Iterator[Server]:
    """A server with empty job tables and an empty ledger, running at the test's start."""
    if not _breakable.running():
        _breakable.start()
    yield _breakable
    if not _breakable.running():
        _breakable.start()


@pytest.fixture
def engine(server: Server) -> Iterator[Engine]:
    """The test's own engine on the server."""
    engine = create_engine(
        server.url(), pool_pre_ping=True, connect_args={"application_name": TEST}
    )
    with engine.begin() as connection:
        connection.execute(
            text("TRUNCATE ledger, proletarian.job, proletarian.archived_job, proletarian.running")
        )
    yield engine
    engine.dispose()


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each way to wait and to hold jobs."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What the chaos of this run follows from; ``--seed`` repeats a run."""
    given = request.config.getoption("--seed")
    seed = random.randrange(2**32) if given is None else int(given)  # noqa: S311
    print(f"--seed={seed}")  # noqa: T201 - shown when the test fails
    return seed


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> float:
    """Seconds of chaos that were asked for with ``--soak``; 0 is the short form."""
    return float(request.config.getoption("--soak"))


@pytest.fixture
def recovered(
    record_property: Callable[[str, object], None],
) -> Callable[[str, Kind, float], None]:
    """Notes how many seconds after a fault the work went on; the run ends with a table of it."""

    def note(fault: str, kind: Kind, seconds: float) -> None:
        record_property(f"{RECOVERY}: {fault}", f"{kind.held} {seconds:.2f}")

    return note


@pytest.fixture
def workers(
    server: Server, engine: Engine, _nursery: Nursery, tmp_path: Path, seed: int
) -> Iterator[Fleet]:
    """Worker processes on the server."""
    with fleet(_nursery, server.url(), tmp_path, seed) as workers:
        yield workers
