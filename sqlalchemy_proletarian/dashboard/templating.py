"""The templates, which escape every value."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import formats


def environment() -> Environment:
    """Return the environment of the templates."""
    made = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0], "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("ago", "number", "pretty", "shortened", "span", "tail", "time"):
        made.filters[name] = getattr(formats, name)
    return made
