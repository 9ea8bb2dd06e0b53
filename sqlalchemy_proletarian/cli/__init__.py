"""The command line: ``proletarian``."""

from .main import main

__all__ = ["main"]
