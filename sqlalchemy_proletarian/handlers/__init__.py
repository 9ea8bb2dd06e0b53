"""Handlers: from a job's type to the function that runs it."""

from .handler import Handler
from .registry import Handlers, as_handlers

__all__ = ["Handler", "Handlers", "as_handlers"]
