"""Tests that the built packages work after they are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

import pytest
from sqlalchemy import URL
from trove_classifiers import classifiers

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
    """A virtual environment without access to the packages of the system."""

    path: Path

    @classmethod
    def create(cls, path: Path, interpreter: str = sys.executable) -> Environment:
        """Create an environment without pip, which is slow to install; pip runs from outside."""
        if interpreter == sys.executable:
            venv.create(path, with_pip=False, symlinks=True)
        else:
            run(interpreter, "-m", "venv", "--without-pip", path, cwd=path.parent)
        return cls(path)

    def install(self, *arguments: str) -> None:
        """Install packages into the environment with pip."""
        python = str(self.path / "bin" / "python")
        run(
            sys.executable, "-m", "pip", "--python", python, "install", "-q", *arguments,
            cwd=self.path,
        )  # fmt: skip

    def proletarian(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's ``proletarian`` command in a directory outside the checkout."""
        return subprocess.run(
            [self.path / "bin" / "proletarian", *arguments],
            cwd=self.path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )


def interpreters() -> list[str]:
    """Return the interpreter of the tests, and the other supported ones that the machine has."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = " ".join(metadata["classifiers"])
    versions = re.findall(r"Programming Language :: Python :: (3\.\d+)", named)
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = [shutil.which(f"python{version}") for version in versions if version != mine]
    return [sys.executable, *(path for path in others if path and _runs(path))]


def _runs(path: str) -> bool:
    """Return whether a command is an interpreter: that of a version manager may be a shim."""
    return subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("form", "options"), [("wheel", []), ("sdist", []), ("source", ["--editable"])]
)
def test_the_installed_command_finds_its_migrations(
    form: str, options: list[str], built: dict[str, Path], tmp_path: Path, empty_database: URL
) -> None:
    """The command runs the shipped migrations after each kind of installation."""
    environment = Environment.create(tmp_path / "venv")
    environment.install(*options, f"{built[form]}[cli,binary]")
    url = empty_database.render_as_string(hide_password=False)
    for command in (["upgrade"], ["check"], ["downgrade", "0"]):
        result = environment.proletarian("migrate", *command, "--url", url)
        assert result.returncode == 0, result.stdout + result.stderr


def test_the_bare_package_names_missing_extras(built: dict[str, Path], tmp_path: Path) -> None:
    """The command names the extra to install, and the migrations can be imported without it."""
    environment = Environment.create(tmp_path / "venv")
    environment.install(str(built["wheel"]))
    result = environment.proletarian("migrate", "upgrade")
    assert result.returncode == 1
    assert result.stderr == ("click is not installed: pip install 'sqlalchemy-proletarian[cli]'\n")
    statement = "from sqlalchemy_proletarian import migrate, migrations; print(migrate.sql())"
    python = environment.path / "bin" / "python"
    assert "CREATE UNLOGGED TABLE" in run(python, "-c", statement, cwd=tmp_path)
    environment.install("click", "rich")
    url = "postgresql://127.0.0.1:1/x"
    # PSYCOPG_IMPL selects the binary wheel, because the machine may have a libpq that would work.
    result = environment.proletarian("migrate", "check", "--url", url, PSYCOPG_IMPL="binary")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.endswith(": pip install 'sqlalchemy-proletarian[binary]'\n")
    assert result.stderr.count("\n") == 1


def test_pytest_finds_the_plugin(built: dict[str, Path], tmp_path: Path) -> None:
    """Without any setting, the fixture is there; if it is not used, nothing is imported."""
    environment = Environment.create(tmp_path / "venv")
    environment.install(str(built["wheel"]), "pytest")
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_unused():\n"
        "    assert 'sqlalchemy' not in sys.modules\n"
        "def test_used(proletarian_clock):\n"
        "    from sqlalchemy_proletarian import utcnow\n"
        "    assert proletarian_clock() == utcnow()\n"
    )
    python = environment.path / "bin" / "python"
    assert "2 passed" in run(python, "-m", "pytest", "test_it.py", cwd=tmp_path)


def test_a_wheel_built_from_the_sdist_is_complete(built: dict[str, Path], tmp_path: Path) -> None:
    """It has the same files as a wheel built from the checkout, including ``py.typed``."""
    contents = []
    for form in ("wheel", "wheel from sdist"):
        target = tmp_path / form
        shutil.unpack_archive(built[form], target, "zip")
        files = [path for path in target.rglob("*") if path.is_file()]
        contents.append({str(path.relative_to(target)): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert {
        "pytest_sqlalchemy_proletarian.py",
        "sqlalchemy_proletarian/py.typed",
        "sqlalchemy_proletarian/migrations/env.py",
        "sqlalchemy_proletarian/migrations/versions/0001_job_tables.py",
    } <= set(contents[0])


def test_the_built_packages_pass_the_checks(built: dict[str, Path]) -> None:
    """The index accepts the metadata, and the wheel has nothing that does not belong in it."""
    files = [built["wheel"], built["sdist"], built["wheel from sdist"]]
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=ROOT)
    run(sys.executable, "-m", "check_wheel_contents", built["wheel"], cwd=ROOT)


@pytest.mark.parametrize("interpreter", interpreters(), ids=lambda path: Path(path).name)
def test_the_wheel_works_in_an_empty_environment(
    interpreter: str, built: dict[str, Path], tmp_path: Path
) -> None:
    """Of the package alone, all public names can be imported; with an extra, the command runs."""
    environment = Environment.create(tmp_path / "venv", interpreter)
    environment.install(str(built["wheel"]))
    python = environment.path / "bin" / "python"
    statement = "from sqlalchemy_proletarian import *; from sqlalchemy_proletarian import manage"
    run(python, "-W", "error", "-c", statement, cwd=tmp_path)
    environment.install(f"{built['wheel']}[cli]")
    result = environment.proletarian("--help")
    assert result.returncode == 0, result.stderr
    assert "worker" in result.stdout


def test_the_metadata_are_complete(built: dict[str, Path], tmp_path: Path) -> None:
    """What an index shows of the package; its URLs are missing until it has some."""
    shutil.unpack_archive(built["wheel"], tmp_path, "zip")
    [file] = tmp_path.glob("*.dist-info/METADATA")
    metadata = message_from_string(file.read_text(encoding="utf-8"))
    for name in ("Summary", "Author", "Keywords", "License-Expression", "Requires-Python"):
        assert metadata[name], name
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "A durable job queue" in metadata.get_payload()
    unknown = set(metadata.get_all("Classifier", [])) - set(classifiers)
    assert unknown == set()
    assert (file.parent / "licenses" / "LICENSE").exists()
