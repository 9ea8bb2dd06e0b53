from __future__ import annotations

import sys

from sqlalchemy import URL

from .programs import EXAMPLES, ROOT, blocks_of, run

PROGRAM = EXAMPLES / "first_program.py"


def test_first_program_is_the_file():
    """The README's first program is the file that the tests run, to the letter."""
    programs = [block.code for block in blocks_of(ROOT / "README.md") if "__main__" in block.code]
    assert programs == [PROGRAM.read_text()]


def test_first_program_works_on_an_empty_database(empty_database: URL):
    """A newcomer's first program runs as it stands and says what the reader expects."""
    result = run([sys.executable, str(PROGRAM)], url=empty_database)
    assert (result.returncode, result.stdout) == (0, "Welcome, ada@example.com!\n"), result.stderr


def test_first_program_works_twice(empty_database: URL):
    """Running the first program a second time does no harm and welcomes once more."""
    for _ in range(2):
        result = run([sys.executable, str(PROGRAM)], url=empty_database)
        assert (result.returncode, result.stdout) == (0, "Welcome, ada@example.com!\n")


def test_commands_are_the_two_that_work():
    """The README gives the two commands in the form that CI runs them."""
    readme = (ROOT / "README.md").read_text()
    assert "python -m pip install -e '.[demo]' && proletarian demo\n" in readme
    command = "python -m pip install -e '.[test]' && pytest"
    assert f"{command}\n" in readme
    assert command in (ROOT / ".ci" / "run").read_text()
