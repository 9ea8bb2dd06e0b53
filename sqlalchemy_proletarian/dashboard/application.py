"""The ASGI application: the options, the addresses, and what surrounds each page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..extras import require_extra

require_extra("starlette", "dashboard")
require_extra("jinja2", "dashboard")

from starlette.applications import Starlette  # noqa: E402 - the errors above say what to install
from starlette.routing import Mount, Route  # noqa: E402
from starlette.staticfiles import StaticFiles  # noqa: E402

from ..clock import as_timedelta  # noqa: E402
from .changes import Changes  # noqa: E402
from .database import Database  # noqa: E402
from .options import Action, DashboardOptions, JobTables  # noqa: E402
from .pages import Pages  # noqa: E402
from .site import Site  # noqa: E402

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
    from sqlalchemy.orm import sessionmaker
    from starlette.requests import Request

    from .options import Authorize

_STATIC: Final = Path(__file__).parent / "static"


def dashboard(
    bind: Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any],
    *,
    authorize: Authorize | None = None,
    insecure_local: bool = False,
    read_only: bool = False,
    tables: Sequence[JobTables] | None = None,
    redact: Callable[[str, Any], Any] | None = None,
    show_related: bool = True,
    trace_url: str | None = None,
    actor: Callable[[Request], str] | None = None,
    on_action: Callable[[Action], object] | None = None,
    title: str = "Jobs",
    statement_timeout: timedelta = timedelta(seconds=5),
) -> Starlette:
    """Return a dashboard of the queues and jobs, as an ASGI application.

    ::

        app.mount("/jobs", dashboard(engine, authorize=lambda request: request.user.is_admin))

    All parameters except the first are keyword-only.

    :param bind: the database of the job tables: an Engine, an AsyncEngine, or a sessionmaker or
        async_sessionmaker that is bound to one. Each page uses one connection for a short time.
    :param authorize: called with the request of each page; the visitor may see it if it returns
        True. It may be ``async``. Without it, nobody may see anything.
    :param insecure_local: let everybody in whose request comes from this machine, if ``authorize``
        is not given. False by default.
    :param read_only: show no buttons and change nothing. False by default.
    :param tables: the job tables, each a tab; by default those of :class:`.Job`.
    :param redact: called with the job type and the decoded payload, or its text if it is not JSON;
        returns what is shown in its place. By default, payloads are shown as they are.
    :param show_related: whether the page of a job shows the rows to which it has foreign keys. True
        by default.
    :param trace_url: the address of a trace, with ``{trace_id}``, for jobs that have a
        ``traceparent`` among their headers. None by default.
    :param actor: called with the request of an action; returns who acts. By default the address of
        the client.
    :param on_action: called with each :class:`Action` after its commit. It is logged, too.
    :param title: the title of the pages; "Jobs" by default.
    :param statement_timeout: how long a statement may take, on PostgreSQL; 5 seconds by default.
    :raises ImportError: if the extra ``dashboard`` is not installed.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if two tabs have the same name, there is none, or ``statement_timeout`` is
        not positive.

    .. versionadded:: 0.1
    """
    options = DashboardOptions(
        tables=_checked_tables(tables),
        authorize=authorize,
        insecure_local=insecure_local,
        read_only=read_only,
        actor=_client if actor is None else actor,
        on_action=on_action,
        redact=redact,
        show_related=show_related,
        trace_url=trace_url,
        title=title,
        timeout=as_timedelta("statement_timeout", statement_timeout, zero=False),
    )
    site = Site(Database(bind, options.timeout), options)
    pages, changes = Pages(site), Changes(site)
    post = ["POST"]
    routes = [
        Mount("/static", StaticFiles(directory=_STATIC), name="static"),
        Route("/", pages.front, name="front"),
        Route("/{tables}/", pages.overview, name="overview"),
        Route("/{tables}/jobs", pages.jobs, name="jobs"),
        Route("/{tables}/jobs/{job_id}", pages.job, name="job"),
        Route("/{tables}/failures", pages.failures, name="failures"),
        Route("/{tables}/recurring", pages.recurring, name="recurring"),
        Route("/{tables}/confirm", changes.confirm, name="confirm", methods=post),
        Route("/{tables}/act", changes.act, name="act", methods=post),
    ]
    return Starlette(routes=routes, exception_handlers=site.exception_handlers())


def _checked_tables(tables: Sequence[JobTables] | None) -> Sequence[JobTables]:
    given = [JobTables()] if tables is None else list(tables)
    slugs = [one.slug for one in given]
    if not given or len(set(slugs)) < len(slugs):
        msg = f"a dashboard needs tabs with different names, not {[one.name for one in given]}"
        raise ValueError(msg)
    if "static" in slugs:
        msg = "a tab cannot be called 'static'"
        raise ValueError(msg)
    return given


def _client(request: Request) -> str:
    return "" if request.client is None else request.client.host
