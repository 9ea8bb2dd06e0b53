from __future__ import annotations

import logging
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Status, migrate
from sqlalchemy_proletarian.telemetry.events import LEVELS

from .programs import PAGES, PROGRAM_MARK, ROOT, blocks_of, plain, run_tests

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

OTHERS = sorted(page.name for page in ROOT.glob("*.md") if page not in PAGES)
"""The pages beside the README, which Sphinx does not read."""

OF_TESTS = "docs/howto/testing.md"
"""The page whose blocks are a file of tests."""


@pytest.fixture
def _engines_are_disposed() -> Iterator[None]:
    """Dispose of the engines that a page creates, as in the application of a framework."""
    engines: set[Engine] = set()

    def add_engine(connection: Connection) -> None:
        engines.add(connection.engine)

    event.listen(Engine, "engine_connect", add_engine)
    yield
    event.remove(Engine, "engine_connect", add_engine)
    for engine in engines:
        if not engine.dialect.is_async:
            engine.dispose()


def test_the_tests_on_the_page_about_testing_pass(empty_database: URL, tmp_path: Path):
    """The blocks of the page, in order, are a file that pytest runs with the plugin."""
    blocks = blocks_of(ROOT / OF_TESTS)
    (tmp_path / "test_page.py").write_text("\n".join(block.code for block in blocks))
    result = run_tests(tmp_path, empty_database)
    assert result.returncode == 0, result.stdout
    assert f"{sum(block.code.count('def test_') for block in blocks)} passed" in result.stdout


@pytest.mark.usefixtures("_engines_are_disposed")
@pytest.mark.parametrize("name", [name for name in NAMES if name != OF_TESTS])
def test_the_code_blocks_of_each_page_run(
    name: str, empty_database: URL, monkeypatch: pytest.MonkeyPatch
):
    """The blocks run in the order of the page; blocks marked as "compiled only" only compile."""
    page = ROOT / name
    migrate.upgrade(empty_database)
    engine = create_engine(empty_database, poolclass=NullPool)
    module = ModuleType("documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    namespace = vars(module)
    namespace |= {"engine": engine, "url": plain(empty_database)}
    for block in blocks_of(page):
        code = block.compiled(page)
        if block.runs and PROGRAM_MARK not in block.code:
            exec(code, namespace)  # noqa: S102
    for test in [value for key, value in namespace.items() if key.startswith("test_")]:
        test(engine)
    unexpected_errors = select(ArchivedJob.error).where(
        ArchivedJob.error.is_not(None),
        ArchivedJob.status != Status.CANCELLED,
        ArchivedJob.error != "not needed",  # the reason of the job that the page discards
    )
    with Session(engine) as session:
        assert session.scalars(unexpected_errors).all() == []


@pytest.mark.parametrize("name", NAMES + OTHERS)
def test_relative_links_lead_to_existing_files(name: str):
    page = ROOT / name
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_list_of_events_is_complete():
    """The page lists exactly the events of the library, with their levels."""
    page = (ROOT / "docs" / "events.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| ([A-Z]+) \|", page, re.MULTILINE)
    assert dict(rows) == {event: logging.getLevelName(level) for event, level in LEVELS.items()}


def test_tests_named_in_the_documentation_exist():
    """The page on reliability names the tests of each guarantee."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(tests/\w+/test_\w+\.py)::(\w+)`", page)
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert len(named) > 30
    assert missing == []


def test_the_queries_on_bloat_run(empty_database: URL):
    """They need only the job tables and PostgreSQL's own views."""
    migrate.upgrade(empty_database)
    page = (ROOT / "docs" / "explanation" / "bloat.md").read_text()
    queries = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(queries) == 4
    engine = create_engine(empty_database, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for query in queries:
            connection.exec_driver_sql(query)


def test_the_drawing_of_the_layers_has_all_of_them():
    drawn = ET.parse(ROOT / "docs" / "images" / "layers.svg")  # noqa: S314
    rows = [
        re.findall(r"\w+", " ".join(group.itertext()))
        for group in drawn.iterfind(".//{http://www.w3.org/2000/svg}g")
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [contract] = project["tool"]["importlinter"]["contracts"]
    assert rows == [re.findall(r"\w+", layer) for layer in contract["layers"]]


def test_every_page_is_in_the_navigation():
    """A table of contents names each page: that of the index, or that of a page it leads to."""
    toctree = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    listed = {ROOT / "docs" / "index.md"}
    for page in PAGES:
        names = "\n".join(toctree.findall(page.read_text())).splitlines()
        listed |= {page.parent / f"{name}.md" for name in names if name and name[0] != ":"}
    assert set(PAGES[1:]) - listed == set()
