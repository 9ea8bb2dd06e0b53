"""Importing what an option names: ``module:name``, from the current directory as well."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .settings import settings


def import_named(option: str, target: str) -> list[tuple[str, Any]]:
    """Import a module, and return the objects of it that are named, with their names.

    The current directory and the folder of the settings are put at the beginning of ``sys.path``,
    because a console script does not have them there.

    :param option: the name of the option, for the error message.
    :param target: the module and the names, as ``module:name,name``. A name may have dots.
    :raises click.UsageError: if the target is not written like this, or there is no such module or
        name. An error that the module itself raises is not caught.
    """
    module_name, colon, names = target.partition(":")
    wanted = [name.strip() for name in names.split(",")]
    if not colon or not module_name or not all(wanted):
        msg = f"{option} {target!r}: expected module:name, as in shop.models:EmailJob"
        raise click.UsageError(msg)
    _make_importable()
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # an import in the module failed
        msg = (
            f"{option} {target!r}: there is no module {error.name!r} (searched in {Path.cwd()} and "
            f"the installed packages)"
        )
        raise click.UsageError(msg) from error
    except ValueError as error:  # a name such as "..x"
        msg = f"{option} {target!r}: {module_name!r} is not the name of a module"
        raise click.UsageError(msg) from error
    return [(name, _attribute(option, target, module, name)) for name in wanted]


def _attribute(option: str, target: str, module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            msg = f"{option} {target!r}: the module {module.__name__} has no {name!r}"
            raise click.UsageError(msg) from error
    return found


def _make_importable() -> None:
    folders = [Path.cwd(), settings().folder]
    for folder in reversed([str(folder) for folder in folders if folder is not None]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
