from __future__ import annotations

import logging
import re
import sys
from types import ModuleType

import pytest
from sqlalchemy import URL, NullPool, create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Status, migrate
from sqlalchemy_proletarian.telemetry.events import LEVELS

from .programs import PAGES, PROGRAM_MARK, ROOT, blocks_of, plain

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_run(name: str, empty_database: URL, monkeypatch: pytest.MonkeyPatch):
    """Every block of Python in the documentation runs in the order of its page, or compiles."""
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
    wrong = select(ArchivedJob.error).where(
        ArchivedJob.error.is_not(None), ArchivedJob.status != Status.CANCELLED
    )
    with Session(engine) as session:
        assert session.scalars(wrong).all() == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str):
    """Every relative link in the documentation leads to a file that is there."""
    page = ROOT / name
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_event_is_listed():
    """The list of events has each event of the library, with its level, and no other."""
    page = (ROOT / "docs" / "events.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| ([A-Z]+) \|", page, re.MULTILINE)
    assert dict(rows) == {event: logging.getLevelName(level) for event, level in LEVELS.items()}


def test_every_test_that_is_named_exists():
    """A test that the page on reliability holds against a promise is there, under that name."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(tests/\w+/test_\w+\.py)::(\w+)`", page)
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert len(named) > 30
    assert missing == []


def test_every_page_is_on_the_map():
    """The index leads to every page."""
    index = (ROOT / "docs" / "index.md").read_text()
    missing = [
        page.name for page in PAGES[1:] if page.name != "index.md" and page.name not in index
    ]
    assert missing == []
