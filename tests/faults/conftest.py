"""Fixtures for databases that the tests may break and for the length of the chaos."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from statistics import median

import pytest
from sqlalchemy import Engine

from . import sites
from .fleet import KINDS, Fleet, Kind, fleet
from .server import Server
from .sites import PostgreSQL, Site

RECOVERY = "seconds to recovery"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long workers took to recover from each fault, as in docs/reliability.md."""
    recorded: dict[tuple[str, str], list[float]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            what, _, fault = name.partition(": ")
            if what == RECOVERY:
                held, seconds = str(value).split()
                recorded.setdefault((fault, held), []).append(float(seconds))
    if recorded:
        terminalreporter.section(RECOVERY)
    for (fault, held), all_seconds in sorted(recorded.items()):
        terminalreporter.write_line(
            f"{fault:52} {held:12} median {median(all_seconds):5.1f}  "
            f"longest {max(all_seconds):5.1f}  of {len(all_seconds)}"
        )


@pytest.fixture(scope="session")
def _sites() -> Iterator[Callable[[str], Site]]:
    with ExitStack() as opened:

        @cache
        def open_site(name: str) -> Site:
            return opened.enter_context(sites.site(name))

        yield open_site


@pytest.fixture
def site(request: pytest.FixtureRequest, _sites: Callable[[str], Site]) -> Iterator[Site]:
    """Yield the running database: PostgreSQL, unless the test names others."""
    site = _sites(getattr(request, "param", "postgresql"))
    site.start()
    yield site
    site.start()


@pytest.fixture(scope="session")
def _breakable(_sites: Callable[[str], Site]) -> Server:
    postgresql = _sites("postgresql")
    assert isinstance(postgresql, PostgreSQL)
    return postgresql.server


@pytest.fixture
def server(site: Site, _breakable: Server) -> Server:
    """Return the PostgreSQL server, for tests that run only there."""
    assert site.name == "PostgreSQL"
    return _breakable


@pytest.fixture
def engine(site: Site) -> Iterator[Engine]:
    """Yield the test's own engine on the database; its tables are empty."""
    engine = site.engine(pool_pre_ping=True)
    site.empty(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Return each kind of worker in turn."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of this run's random choices; ``--seed`` repeats a run."""
    given = request.config.getoption("--seed")
    seed = random.randrange(2**32) if given is None else int(given)  # noqa: S311
    print(f"--seed={seed}")  # noqa: T201 - shown when the test fails
    return seed


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> float:
    """Return the seconds of chaos given with ``--soak``; 0 runs the short form."""
    return float(request.config.getoption("--soak"))


@pytest.fixture
def recovered(
    site: Site, record_property: Callable[[str, object], None]
) -> Callable[[str, Kind, float], None]:
    """Return a function that records seconds to recovery for the table at the end of the run."""

    def record(fault: str, kind: Kind, seconds: float) -> None:
        record_property(f"{RECOVERY}: {site.name}: {fault}", f"{kind.held} {seconds:.2f}")

    return record


@pytest.fixture
def workers(site: Site, engine: Engine, tmp_path: Path, seed: int) -> Iterator[Fleet]:
    """Yield a fleet of worker processes for the database."""
    with fleet(site.url, site.kinds, tmp_path, seed) as workers:
        yield workers
        print(workers.said()[-20_000:])  # noqa: T201 - shown when the test fails
