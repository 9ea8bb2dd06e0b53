"""The command ``proletarian`` itself, its ``--url`` option, and errors that print as one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from alembic.util import CommandError
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from ..database.urls import sync_url
from ..errors import ProletarianError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_HINTS = {
    "42P07": "the tables were created by other means: see 'proletarian migrate check'",
    "42P01": "some or all of the tables do not exist: see 'proletarian migrate check'",
    "42501": (
        "ask an administrator to GRANT CREATE on it to the role, or to create a schema for the "
        "role: CREATE SCHEMA … AUTHORIZATION …"
    ),
}
"""A hint at the probable cause, by SQLSTATE."""


class ReadableErrors(click.Group):
    """A group whose commands print one line and exit with 1 instead of raising an exception."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (SQLAlchemyError, CommandError, ProletarianError, ImportError) as error:
            raise click.ClickException(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, DBAPIError) and error.orig is not None:
        # The driver's message without the statement; it has one line for each host of the URL.
        line = " ".join(str(error.orig).split())
        hint = _HINTS.get(getattr(error.orig, "sqlstate", None) or "")
        return f"{line} ({hint})" if hint else line
    line = str(error).partition("\n")[0]
    if "pq wrapper" in line or "psycopg_binary" in line:
        return f"{line.rstrip('.')}: pip install 'sqlalchemy-proletarian[binary]'"
    return line


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


def url_option(*, required: bool = True) -> Callable[[_Command], _Command]:
    """Return the option ``--url``, which can also be set by an environment variable."""
    return click.option(
        "--url",
        type=database_url,
        metavar="URL",
        envvar="PROLETARIAN_URL",
        show_envvar=True,
        required=required,
        help="The database, as postgresql://user:password@host/database.",
    )


@click.group(cls=ReadableErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sqlalchemy-proletarian", prog_name="proletarian")
def proletarian() -> None:
    """A durable job queue that is nothing but mapped tables and your own Session."""  # noqa: D401 - the title of the help
