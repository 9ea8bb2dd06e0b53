"""The database and the models of a command: its options ``--url``, ``--models`` and ``--debug``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

import click
from sqlalchemy import URL, Engine, NullPool, create_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import immutabledict

from ..database.dialects import features_of
from ..database.urls import impatient, require_existing
from ..models.defaults import SCHEMA
from .app import debug_option, url_option
from .models import Models, load_models
from .settings import settings

_NONE: Final[immutabledict[str, tuple[str, ...] | str]] = immutabledict()


class Target:
    """The database and the models of a command."""

    def __init__(self, url: URL, models: Models) -> None:
        try:
            require_existing(url)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        self.models = models
        self.url = url
        engine = create_engine(impatient(url), poolclass=NullPool)
        if not features_of(engine.dialect).schemas:
            engine = engine.execution_options(schema_translate_map={SCHEMA: None})
        self.engine: Engine = engine

    @contextmanager
    def session(self) -> Generator[Session]:
        """Yield a session in a transaction, which commits at the end of the block."""
        with Session(self.engine) as session, session.begin():
            yield session

    def __str__(self) -> str:
        """Return the URL without the password, and without options, which may contain one."""
        name = self.url.get_backend_name()
        return self.url._replace(drivername=name, password=None, query=_NONE).render_as_string()


def on_database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, whose first parameter becomes a :class:`Target`."""

    @wraps(command)
    def run(*args: Any, url: URL, models: tuple[str, ...], **options: Any) -> Any:
        target = Target(url, load_models(models or settings().models))
        return command(target, *args, **options)

    models = click.option(
        "--models",
        multiple=True,
        metavar="MODULE:CLASS,…",
        help="Your own mapped classes, at least those of the jobs and of their archive.",
    )
    return url_option()(models(debug_option()(run)))
