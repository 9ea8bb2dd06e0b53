"""Imports of optional dependencies, which are provided by extras."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require_extra(module: str, extra: str) -> Any:
    """Import ``module`` and return it.

    :param module: the dotted name of the module to import.
    :param extra: the extra of this distribution that installs it.
    :raises ImportError: if the module is not installed; the message contains the command that
        installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        msg = f"{module} is not installed: pip install 'sqlalchemy-proletarian[{extra}]'"
        raise ImportError(msg) from error
