"""Optional dependencies: imported where used, missed with the command that installs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require_extra(module: str, extra: str) -> Any:
    """Import ``module``, or raise ``ImportError`` naming the extra that brings it.

    :param module: dotted name of the module to import.
    :param extra: the extra of this distribution that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        msg = f"{module} is not installed: pip install 'sqlalchemy-proletarian[{extra}]'"
        raise ImportError(msg) from error
