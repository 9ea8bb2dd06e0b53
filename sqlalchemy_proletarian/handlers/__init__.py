"""Handlers: from a job's type to the function that runs it."""

from .every_type import as_handlers
from .handler import Handler
from .registry import Handlers

__all__ = ["Handler", "Handlers", "as_handlers"]
