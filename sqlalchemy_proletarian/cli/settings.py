"""The settings of a project: the table ``[tool.proletarian]`` of its ``pyproject.toml``.

::

    [tool.proletarian]
    url = "postgresql:///shop"
    models = "shop.models:EmailJob,ArchivedEmailJob"

The file is searched in the current directory and upwards; a ``pyproject.toml`` without the table is
passed over. Options of the command line and environment variables override the settings.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ProletarianError


class SettingsError(ProletarianError, ValueError):
    """The table ``[tool.proletarian]`` is not valid; the message names the file and the key."""


@dataclass(frozen=True)
class Settings:
    """The settings; a key of the table is a field with a metadata entry for its type."""

    file: Path | None = None
    """The file that has the table; None if there is none."""
    url: str | None = None
    """The URL of the database."""
    models: tuple[str, ...] = ()
    """The mapped classes, each as ``module:Class,Class``."""

    @property
    def folder(self) -> Path | None:
        """The folder of the file, from which its modules can be imported."""
        return None if self.file is None else self.file.parent


@cache
def settings() -> Settings:
    """Return the settings for the current directory.

    :raises SettingsError: if a file cannot be read, or has unknown keys or wrong values.
    """
    return settings_from(Path.cwd())


def settings_from(folder: Path) -> Settings:
    """Return the settings of the first file with the table in a folder or above it."""
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        if not file.is_file():
            continue
        found = _table(file)
        if found is not None:
            return _checked(file, found)
    return Settings()


def _table(file: Path) -> Any:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{file} cannot be read: {str(error).partition(chr(10))[0]}"
        raise SettingsError(msg) from error
    return document.get("tool", {}).get("proletarian")


def _checked(file: Path, found: Any) -> Settings:
    where = f"[tool.proletarian] in {file}"
    if not isinstance(found, dict):
        msg = f"tool.proletarian in {file} must be a table"
        raise SettingsError(msg)
    known = [field.name for field in fields(Settings) if field.name != "file"]
    unknown = [name for name in found if name not in known]
    if unknown:
        msg = f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(known)}"
        raise SettingsError(msg)
    values = dict(found)
    if isinstance(values.get("models"), str):
        values["models"] = [values["models"]]
    models = values.get("models", [])
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        msg = f"{where}: models must be a string 'module:Class,Class', or a list of such strings"
        raise SettingsError(msg)
    if not isinstance(values.get("url", ""), str):
        msg = f"{where}: url must be a string"
        raise SettingsError(msg)
    return Settings(file, values.get("url"), tuple(models))
