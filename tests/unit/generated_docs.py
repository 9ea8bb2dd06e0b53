"""The module of the documentation that takes facts from the code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load_facts() -> ModuleType:
    """Import ``docs/_ext/facts.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("facts", ROOT / "docs" / "_ext" / "facts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuples look for it
    spec.loader.exec_module(module)
    return module


facts = load_facts()
