"""The command ``proletarian dashboard``."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress

import click
from sqlalchemy import create_engine

from ..database.urls import impatient
from ..extras import require_extra
from .importing import import_named
from .target import Target, on_database


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="The port."
)
@click.option(
    "--authorize",
    metavar="MODULE:FUNCTION",
    help="A function of the request that returns True for those who may see the dashboard.",
)
@click.option(
    "--insecure-local",
    is_flag=True,
    help="Let everybody in who uses this machine. Only with an address of the machine itself.",
)
@click.option("--read-only", is_flag=True, help="Change nothing.")
@on_database
def dashboard(
    target: Target,
    host: str,
    port: int,
    authorize: str | None,
    *,
    insecure_local: bool,
    read_only: bool,
) -> None:
    """Serve a web page with the queues and jobs, until Ctrl-C."""
    uvicorn = require_extra("uvicorn", "dashboard")
    from ..dashboard import JobTables
    from ..dashboard import dashboard as application
    from ..dashboard.access import is_loopback

    if authorize is None and not insecure_local:
        msg = (
            "nobody may see the dashboard yet: pass --authorize module:function, or "
            "--insecure-local on a machine that only you use"
        )
        raise click.UsageError(msg)
    if insecure_local and not is_loopback(host):
        msg = f"--insecure-local listens on this machine only, not on {host}: use --authorize"
        raise click.UsageError(msg)
    function = None if authorize is None else import_named("--authorize", authorize)[0][1]
    models = target.models
    tables = JobTables(
        job_model=models.job,
        archived_job_model=models.archived,
        running_job_model=models.running,
        paused_queue_model=models.paused,
        recurring_job_model=models.recurring,
    )
    options = target.engine.get_execution_options()
    engine = create_engine(impatient(target.url), pool_pre_ping=True)
    engine.update_execution_options(**options)
    app = application(
        engine,
        authorize=function,
        insecure_local=insecure_local,
        read_only=read_only,
        tables=[tables],
    )
    with _listening(host, port) as listener:
        address, used = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        click.echo(f"The dashboard of {target} is at http://{shown}:{used}/ (Ctrl-C ends it)")
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, number, _, address = found[0]
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind, number))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            stack.pop_all()  # the caller closes it
    except OSError as error:
        msg = f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        raise click.ClickException(msg) from error
    return listener
