from __future__ import annotations

import sys

from sqlalchemy import URL

from .programs import EXAMPLES, ROOT, blocks_of, run

PROGRAM = EXAMPLES / "first_program.py"


def test_the_first_program_of_the_readme_is_the_tested_file():
    """The block in the README is identical to the example file."""
    programs = [block.code for block in blocks_of(ROOT / "README.md") if "__main__" in block.code]
    assert programs == [PROGRAM.read_text()]


def test_the_first_program_works_on_an_empty_database(empty_database: URL):
    """The program runs without changes and prints its welcome."""
    result = run([sys.executable, str(PROGRAM)], url=empty_database)
    assert (result.returncode, result.stdout) == (0, "Welcome, ada@example.com!\n"), result.stderr


def test_the_first_program_can_run_twice(empty_database: URL):
    """The second run prints the same output."""
    for _ in range(2):
        result = run([sys.executable, str(PROGRAM)], url=empty_database)
        assert (result.returncode, result.stdout) == (0, "Welcome, ada@example.com!\n")


def test_the_readme_has_the_commands_that_ci_runs():
    """The README has the commands of the demo and of the tests."""
    readme = (ROOT / "README.md").read_text()
    assert "python -m pip install -e '.[demo]' && proletarian demo\n" in readme
    command = "python -m pip install -e '.[test]' && pytest"
    assert f"{command}\n" in readme
    assert command in (ROOT / ".ci" / "run").read_text()
