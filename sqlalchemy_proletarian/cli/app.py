"""The command ``proletarian`` itself, its ``--url`` option, and errors that print as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from traceback import print_exception
from typing import Any, Final, TypeVar

import click
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ..database.urls import sync_url
from ..errors import ProletarianError
from .explain import one_line
from .settings import settings

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DEBUG = "sqlalchemy_proletarian.debug"
URL_KEY = "sqlalchemy_proletarian.url"
"""Keys of what all commands of one call share."""

NO_URL: Final = (
    "there is no database URL: pass --url postgresql://user:password@host/database, set "
    "PROLETARIAN_URL, or write url = … under [tool.proletarian] in pyproject.toml"
)
"""The message for a command without a database."""


class ReadableErrors(click.Group):
    """A group whose commands print one line and exit with 1 instead of raising an exception.

    ``modules`` has the modules of commands by their names. A module is imported when its command is
    used, or all are shown.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.modules: dict[str, str] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the help."""
        return [*self.modules, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, and import its module."""
        if cmd_name not in self.modules:
            return super().get_command(ctx, cmd_name)
        module = import_module(f".{self.modules[cmd_name]}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if error.__cause__ is not None and ctx.meta.get(_DEBUG):
                print_exception(error.__cause__)
            raise
        except Exception as error:
            if not isinstance(error, _readable_errors()):
                raise
            if ctx.meta.get(_DEBUG):
                print_exception(error)
            raise click.ClickException(one_line(error, ctx.meta.get(URL_KEY))) from error


def _readable_errors() -> tuple[type[Exception], ...]:
    found: tuple[type[Exception], ...] = (SQLAlchemyError, ProletarianError, ImportError)
    if "alembic" in sys.modules:  # not every command uses it
        from alembic.util import CommandError

        found += (CommandError,)
    return found


def debug_option() -> Callable[[_Command], _Command]:
    """Return the option ``--debug``, which is accepted before and after the name of a command."""

    def set_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[_DEBUG] = True

    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=set_debug,
        help="Show the traceback of an error.",
    )


def database_url(value: str) -> URL:
    """Parse a database URL; replace an asynchronous driver by a synchronous one.

    :raises click.ClickException: if it is not a valid URL. The message does not contain the URL,
        which may include a password.
    """
    try:
        url = sync_url(value)
    except (ArgumentError, ValueError):
        msg = "this is not a database URL; expected: postgresql://user:password@host/database"
        raise click.ClickException(msg) from None
    if "@" in (url.host or ""):
        msg = "the database URL has more than one @: write an @ in the password as %40"
        raise click.ClickException(msg)
    return url


def url_option(*, required: bool = True, configured: bool = True) -> Callable[[_Command], _Command]:
    """Return the option ``--url``, which can also be set by an environment variable.

    :param configured: whether the settings of the project are its default.
    """

    def or_settings(
        ctx: click.Context, _parameter: click.Parameter, value: URL | None
    ) -> URL | None:
        found = settings().url if value is None and configured else None
        if found is not None:
            value = database_url(found)
        if value is None and required:
            raise click.UsageError(NO_URL, ctx)
        ctx.meta[URL_KEY] = value
        return value

    return click.option(
        "--url",
        type=database_url,
        metavar="URL",
        envvar="PROLETARIAN_URL",
        show_envvar=True,
        callback=or_settings,
        help="The database, as postgresql://user:password@host/database.",
    )


@click.group(cls=ReadableErrors, context_settings={"help_option_names": ["-h", "--help"]})
@debug_option()
@click.version_option(package_name="sqlalchemy-proletarian", prog_name="proletarian")
def proletarian() -> None:
    """A durable job queue that is nothing but mapped tables and your own Session."""  # noqa: D401 - the title of the help
