"""What is built from this checkout works where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has nothing but what was installed in it."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Environment:
        """Make one without pip, which is the slow part: ours can install into it."""
        venv.create(path, with_pip=False, symlinks=True)
        return cls(path)

    def install(self, *arguments: str) -> None:
        """Install into it with pip."""
        python = str(self.path / "bin" / "python")
        run(
            sys.executable, "-m", "pip", "--python", python, "install", "-q", *arguments,
            cwd=self.path,
        )  # fmt: skip

    def proletarian(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run its ``proletarian`` command from a folder outside the checkout."""
        return subprocess.run(
            [self.path / "bin" / "proletarian", *arguments],
            cwd=self.path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that building leaves nothing behind in it."""
    ignored = shutil.ignore_patterns(".*", "tests", "build", "dist", "*.egg-info", "__pycache__")
    copy = tmp_path_factory.mktemp("source") / "checkout"
    return Path(shutil.copytree(ROOT, copy, ignore=ignored))


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pip is to install for each form of the package."""
    straight, through = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("sdist")
    build = [sys.executable, "-m", "build"]
    run(*build, "--wheel", "--outdir", straight, cwd=source)
    # Without --wheel or --sdist, build makes the wheel from the sdist that it made first.
    run(*build, "--outdir", through, cwd=source)
    return {
        "wheel": str(next(straight.glob("*.whl"))),
        "sdist": str(next(through.glob("*.tar.gz"))),
        "wheel from sdist": str(next(through.glob("*.whl"))),
        "editable": str(source),
    }


@pytest.mark.parametrize("form", ["wheel", "sdist", "wheel from sdist", "editable"])
def test_installed_command_migrates(
    form: str, built: dict[str, str], tmp_path: Path, empty_database: URL
) -> None:
    """However it was installed, the command finds the shipped migrations and runs them."""
    environment = Environment.create(tmp_path / "venv")
    editable = ["--editable"] if form == "editable" else []
    environment.install(*editable, f"{built[form]}[cli,binary]")
    url = empty_database.render_as_string(hide_password=False)
    for command in (["upgrade"], ["check"], ["downgrade", "0"]):
        result = environment.proletarian("migrate", *command, "--url", url)
        assert result.returncode == 0, result.stdout + result.stderr


def test_without_extras(built: dict[str, str], tmp_path: Path) -> None:
    """The bare package says which extra brings the command, and the migrations import."""
    environment = Environment.create(tmp_path / "venv")
    environment.install(built["wheel"])
    result = environment.proletarian("migrate", "upgrade")
    assert result.returncode == 1
    assert result.stderr == ("click is not installed: pip install 'sqlalchemy-proletarian[cli]'\n")
    statement = "from sqlalchemy_proletarian import migrate, migrations; print(migrate.sql())"
    python = environment.path / "bin" / "python"
    assert "CREATE UNLOGGED TABLE" in run(python, "-c", statement, cwd=tmp_path)
    environment.install("click", "rich")
    url = "postgresql://127.0.0.1:1/x"
    # Asked for by name, since a machine may have a libpq that serves as well.
    result = environment.proletarian("migrate", "check", "--url", url, PSYCOPG_IMPL="binary")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.endswith(": pip install 'sqlalchemy-proletarian[binary]'\n")
    assert result.stderr.count("\n") == 1


def test_the_two_wheels_are_alike(built: dict[str, str], tmp_path: Path) -> None:
    """Nothing is lost on the way through the sdist, and the wheel carries its type marker."""
    names = []
    for form in ("wheel", "wheel from sdist"):
        target = tmp_path / form
        shutil.unpack_archive(built[form], target, "zip")
        names.append({str(path.relative_to(target)) for path in target.rglob("*")})
    assert names[0] == names[1]
    assert {
        "sqlalchemy_proletarian/py.typed",
        "sqlalchemy_proletarian/migrations/env.py",
        "sqlalchemy_proletarian/migrations/versions/0001_job_tables.py",
    } <= names[0]
