"""Helpers that run programs in subprocesses and read the Python blocks of the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
REFERENCE = ROOT / "docs" / "reference"
"""The pages that are generated from docstrings: they have no programs."""

PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if REFERENCE not in page.parents),
]

PROLETARIAN = [sys.executable, "-m", "sqlalchemy_proletarian.cli"]

PROGRAM_MARK = "__main__"
"""A text that only complete programs contain; the tests run these programs as files."""

_BLOCK = re.compile(
    r"^(?P<mark><!-- compiled only -->\n)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


_SAVED = re.compile(r"Save this as\s`[^`]+`[^`]*:\n\n\Z")
"""What is before a block that is a file of the tutorial, which test_tutorial.py runs."""


def plain(url: URL) -> str:
    """Return a URL as text, including the password."""
    return url.render_as_string(hide_password=False)


def run(
    arguments: list[str], *, url: URL | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program and capture its output, 80 columns wide and without colours."""
    given = {} if url is None else {"DATABASE_URL": plain(url)}
    return subprocess.run(
        arguments,
        env=environment(**given, **variables),
        capture_output=True,
        text=True,
        check=False,
    )


def run_tests(folder: Path, url: URL) -> subprocess.CompletedProcess[str]:
    """Run the tests of a folder with pytest and the plugin, which need not be installed."""
    options = ["-p", "pytest_sqlalchemy_proletarian", "-p", "no:cacheprovider", "--rootdir", folder]
    return run([sys.executable, "-m", "pytest", *map(str, options), str(folder)], url=url)


@contextmanager
def started(
    arguments: list[str], **variables: str
) -> Iterator[tuple[subprocess.Popen[str], Callable[[str], str]]]:
    """Start a program in its own process group, and kill it at the end of the context.

    Yields the process and a function that waits for a line with a word, and returns it.
    """
    process = subprocess.Popen(
        arguments,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def wait_for(word: str) -> str:
        assert process.stdout is not None
        return next(line for line in process.stdout if word in line)

    with process:
        try:
            yield process, wait_for
        finally:
            if process.poll() is None:
                process.kill()


def environment(**variables: str) -> dict[str, str]:
    """Return the environment variables of a program."""
    return os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"} | variables


@dataclass(frozen=True)
class Block:
    """A block of Python code in a page of the documentation."""

    code: str
    line: int
    runs: bool

    def compiled(self, page: Path) -> object:
        """Return the code object, with the line numbers of the page."""
        return compile("\n" * self.line + self.code, str(page), "exec", dont_inherit=True)


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of Python code of a page, in order."""
    text = page.read_text()
    return [
        Block(
            match["code"],
            text[: match.start("code")].count("\n"),
            runs=match["mark"] is None and not _SAVED.search(text, 0, match.start()),
        )
        for match in _BLOCK.finditer(text)
    ]
