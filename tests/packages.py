"""The built packages, which the tests of packaging and of the tutorial install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fasteners
import pytest

ROOT = Path(__file__).parents[1]
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The path that pip installs for each form of the package; they are built once for a run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if PARALLEL else own) / "built"
    with fasteners.InterProcessLock(folder.with_suffix(".lock")):
        if not folder.exists():
            new = folder.with_suffix(".new")
            _build(new)
            new.rename(folder)
    return {
        "source": folder / "source",
        "wheel": next((folder / "wheel").glob("*.whl")),
        "sdist": next((folder / "sdist").glob("*.tar.gz")),
        "wheel from sdist": next((folder / "sdist").glob("*.whl")),
    }


def _build(folder: Path) -> None:
    # From a copy, so that the build leaves no files in the checkout.
    ignored = shutil.ignore_patterns(".*", "tests", "build", "dist", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "build", str(source), "--outdir"]
    # Without --wheel or --sdist, build creates an sdist and then the wheel from the sdist.
    for arguments in ([folder / "wheel", "--wheel"], [folder / "sdist"]):
        subprocess.run([*command, *map(str, arguments)], capture_output=True, check=True)
