"""One word for one thing, in the documentation, in docstrings and in messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_OTHERS = re.compile(r"comparison|from-\w+")
"""The names of pages that are about other libraries."""

WORDS = {
    r"heart ?beats?": "a lease is extended, a worker is alive",
    r"etas?": "process_at",
    r"run_at|scheduled_at": "process_at",
    r"dead[- ]?letters?( queue)?": "archived as a failure",
    r"lapse[sd]?|lapsing": "a lease expires",
    r"visibility timeouts?": "lease",
    r"dequeue[sd]?|dequeuing": "claim",
    r"zombies?|reapers?": "a worker crashed; its jobs are due again",
    r"max[_ ](retries|attempts)": "retries",
    r"back[- ]?offs?": "delay of a retry",
    r"re-?queue[sd]?|re-?queuing": "the job is due again, or reschedule",
    r"re-?enqueue[sd]?": "enqueue again",
    r"simply|obviously": "nothing: leave the word out",
}
"""What others say, and what we say."""
WORD = re.compile(
    "|".join(rf"(?P<w{n}>\b(?:{word})\b)" for n, word in enumerate(WORDS)), re.IGNORECASE
)
PAGES = [
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if not OF_OTHERS.fullmatch(page.stem)
]
MODULES = [*ROOT.glob("sqlalchemy_proletarian/**/*.py"), *ROOT.glob("alembic_migrations/**/*.py")]


def prose_of(page: Path) -> str:
    """Return a page without its code, in which names of others may occur."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


def texts_of(module: Path) -> Iterator[str]:
    """Return the docstrings and messages of a module: strings that have words."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield re.sub(r"``.*?``|:\w+:`[^`]*`", "", node.value, flags=re.DOTALL)


def others_words(text: str) -> list[str]:
    return [
        f"{found[0]!r}: say {list(WORDS.values())[int((found.lastgroup or 'w0')[1:])]}"
        for found in WORD.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_our_words(page: Path) -> None:
    assert others_words(prose_of(page)) == []


def test_docstrings_and_messages_use_our_words() -> None:
    found = {
        str(module.relative_to(ROOT)): words
        for module in MODULES
        if (words := others_words("\n".join(texts_of(module))))
    }
    assert found == {}
