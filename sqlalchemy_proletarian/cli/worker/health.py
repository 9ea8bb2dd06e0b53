"""The server of health and metrics of one process: ``--health-port``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import click

from .build import Built
from .link import Link
from .logs import logger
from .plan import Plan


def serving_health(
    built: Built, plan: Plan, link: Link | None
) -> AbstractContextManager[str | None]:
    """Serve the health of the worker in the block, if that is wanted; its value is the URL.

    :raises click.ClickException: if it cannot listen.
    """
    if plan.health_port is None:  # a worker that nobody asks does not need it in memory
        return nullcontext()
    number = 0 if link is None else link.number
    port = plan.health_port + number if plan.health_port else 0
    return _serving(built, plan, port, is_announced=link is None or link.first)


@contextmanager
def _serving(built: Built, plan: Plan, port: int, *, is_announced: bool) -> Generator[str]:
    from ...health import has_prometheus, serve

    with ExitStack() as stack:
        try:
            serving = serve(built.worker, port=port, host=plan.health_host)
            server = stack.enter_context(serving)
        except OSError as error:
            msg = str(error.strerror or error).replace(
                "choose another port or host", "choose another --health-port or --health-host"
            )
            raise click.ClickException(msg) from error
        if not is_announced:
            logger.info("health at %s", server.url)
        yield f"{server.url} (/live, /ready{', /metrics' if has_prometheus() else ''})"
