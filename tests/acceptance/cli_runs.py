"""Running ``proletarian`` in the process of the tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from .in_process import run_here
from .programs import environment, plain


def cli(
    *arguments: Any,
    url: URL | str | None = None,
    given: str = "",
    cwd: Path | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``proletarian`` with the arguments; the URL is passed in the environment.

    :param given: the standard input, which is no terminal.
    """
    values = environment(**variables)
    values.pop("PROLETARIAN_URL", None)
    if url is not None:
        values["PROLETARIAN_URL"] = url if isinstance(url, str) else plain(url)
    return run_here([*map(str, arguments)], cwd=cwd, environment=values, given=given)


def succeeds(*arguments: Any, **options: Any) -> str:
    """Run ``proletarian``, check that it succeeds, and return what it printed."""
    result = cli(*arguments, **options)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return result.stdout


def printed_json(*arguments: Any, **options: Any) -> Any:
    """Run ``proletarian --json`` and return the document."""
    return json.loads(succeeds(*arguments, "--json", **options))


def fails(code: int, *arguments: Any, **options: Any) -> str:
    """Run ``proletarian``, check the exit code, and return the last line of the error output."""
    result = cli(*arguments, **options)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.splitlines()[-1]
