"""The pages: each reads in one session and renders a template."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from .. import manage
from ..callbacks import call_user_function
from ..clock import utcnow
from ..errors import ProletarianError
from .access import HEADERS, TOKEN, Denied, require_access, require_own_form, set_token, token_of
from .actions import KINDS, MOST, Selection, count_text, perform
from .charts import ended_chart
from .database import Database
from .filters import STATES, Filters
from .job_page import read_job
from .options import Action, DashboardOptions, JobTables
from .overview import SPANS, read_overview, read_recurring
from .templating import environment

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("sqlalchemy_proletarian.dashboard")

_PAGE: Final = 50
"""How many jobs a page of a list has."""

_MAX_FORM: Final = 1_000_000
"""Bytes of a form; that of 5,000 ids has a fifth of it."""

_NOTICE: Final = "proletarian_notice"
"""The cookie with what the last action has done."""


class Pages:
    """The functions behind the addresses."""

    def __init__(self, database: Database, options: DashboardOptions) -> None:
        self._database = database
        self._options = options
        self._templates = environment()

    # The pages.

    async def front(self, request: Request) -> Response:
        """Go to the first tab."""
        await require_access(request, self._options)
        first = self._options.tables[0].slug
        return RedirectResponse(f"{_root(request)}/{first}/", 303, headers=HEADERS)

    async def overview(self, request: Request) -> Response:
        """Show the queues, the problems, what runs, and charts."""
        tables = await self._enter(request)
        chart = request.query_params.get("chart", "hour")
        chart = chart if chart in SPANS else "hour"
        found = await self._database.run(lambda s: read_overview(s, tables, chart))
        drawn = ended_chart(found.history, f"Jobs that ended in the last {chart}")
        return self._page(request, "overview", tables, found=found, chart=chart, drawn=drawn)

    async def jobs(self, request: Request) -> Response:
        """List jobs."""
        tables = await self._enter(request)
        filters = Filters.of(request.query_params)
        page, problem = manage.JobPage([], None), filters.problem
        if not problem:
            after = request.query_params.get("after") or None
            arguments = {**filters.arguments(), "after": after, "limit": _PAGE}
            try:
                page = await self._database.run(
                    partial(
                        manage.list_jobs,
                        **arguments,
                        **tables.of_jobs,
                        running_job_model=tables.running_job_model,
                    )
                )
            except ValueError as error:  # the address of a page was changed
                problem = str(error)
        return self._page(
            request,
            "jobs",
            tables,
            filters=filters,
            page=page,
            problem=problem,
            states=STATES,
            now=utcnow(),
        )

    async def job(self, request: Request) -> Response:
        """Show all about one job."""
        tables = await self._enter(request)
        text = request.path_params["job_id"]
        view = await self._database.run(lambda s: read_job(s, tables, text, self._options))
        if view is None:
            raise HTTPException(404, f"There is no job {text}. It may have been pruned.")
        return self._page(request, "job", tables, view=view, now=view.now)

    async def failures(self, request: Request) -> Response:
        """Show the failures of the last day, those that are alike as one."""
        tables = await self._enter(request)
        found = await self._database.run(
            partial(manage.failures, archived_job_model=tables.archived_job_model)
        )
        return self._page(request, "failures", tables, found=found, now=utcnow())

    async def recurring(self, request: Request) -> Response:
        """Show the recurring jobs."""
        tables = await self._enter(request)
        rows = await self._database.run(lambda s: read_recurring(s, tables))
        return self._page(request, "recurring", tables, rows=rows, now=utcnow())

    # Actions.

    async def confirm(self, request: Request) -> Response:
        """Ask whether to do something."""
        tables, form = await self._enter_form(request)
        selection = self._selection(form)
        names = await self._database.run(lambda s: selection.resolved(s, tables))
        return self._page(
            request,
            "confirm",
            tables,
            kind=KINDS[selection.kind],
            action=selection.kind,
            names=names,
            what=count_text(selection.kind, len(names)),
            is_cut=len(names) >= MOST,
            back=_back(form),
        )

    async def act(self, request: Request) -> Response:
        """Do something, and go back to where it was asked for."""
        tables, form = await self._enter_form(request)
        selection = self._selection(form)
        actor = str(self._options.actor(request)) or "unknown"

        def change(session: Session) -> int:
            return perform(session, tables, selection.kind, selection.names, actor)

        done = await self._database.run(change)
        self._report(Action(selection.kind, actor, tables.name, selection.names, done))
        target = _back(form) or f"{_root(request)}/{tables.slug}/"
        response = RedirectResponse(target, 303, headers=HEADERS)
        notice = f"{selection.kind}:{done}:{len(selection.names)}"
        response.set_cookie(_NOTICE, notice, max_age=30, httponly=True, samesite="strict")
        return response

    def _selection(self, form: Mapping[str, list[str]]) -> Selection:
        selection = Selection.of(form)
        if selection is None:
            raise HTTPException(400, "The form is not complete.")
        if not (selection.names or selection.filters):
            raise HTTPException(400, "Nothing is selected.")
        return selection

    def _report(self, action: Action) -> None:
        logger.info(
            "%s: %s of %s, by %s",
            action.name,
            action.done,
            count_text(action.name, len(action.targets)),
            action.by,
            extra={
                "event": f"dashboard-{action.name}",
                "by": action.by,
                "targets": list(action.targets),
                "done": action.done,
            },
        )
        if self._options.on_action is not None:
            try:
                call_user_function(self._options.on_action, action)
            except Exception:
                logger.exception("on_action raised")

    # What surrounds each page.

    async def _enter(self, request: Request) -> JobTables:
        """Check the access, and return the tables of the tab."""
        await require_access(request, self._options)
        slug = request.path_params["tables"]
        for tables in self._options.tables:
            if tables.slug == slug:
                return tables
        raise HTTPException(404, "There is no such page.")

    async def _enter_form(self, request: Request) -> tuple[JobTables, Mapping[str, list[str]]]:
        tables = await self._enter(request)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MAX_FORM:
                raise HTTPException(413, "The form is too large.")
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        require_own_form(request, form)
        if self._options.read_only:
            msg = "This dashboard changes nothing: it is read-only."
            raise Denied(msg)
        return tables, form

    def _page(
        self, request: Request, name: str, tables: JobTables | None, status: int = 200, **values: Any
    ) -> Response:
        """Render a template."""
        html = self._templates.get_template(f"{name}.html").render(
            page_name=name,
            options=self._options,
            tables=tables,
            root=_root(request),
            here=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            token_name=TOKEN,
            token=token_of(request),
            notice=_notice(request),
            kinds=KINDS,
            **values,
        )
        response = Response(html, status, media_type="text/html", headers=HEADERS)
        set_token(request, response)
        if _NOTICE in request.cookies:
            response.delete_cookie(_NOTICE)
        return response

    def exception_handlers(self) -> Mapping[Any, Callable[[Request, Any], Any]]:
        """Return what makes pages of errors."""
        return {
            Denied: self._denied,
            HTTPException: self._http_error,
            SQLAlchemyError: self._database_error,
            ProletarianError: self._database_error,
        }

    async def _denied(self, request: Request, error: Denied) -> Response:
        return self._page(request, "error", None, 403, heading="No access", text=str(error))

    async def _http_error(self, request: Request, error: HTTPException) -> Response:
        heading = "Not found" if error.status_code == 404 else "That did not work"  # noqa: PLR2004
        return self._page(
            request, "error", None, error.status_code, heading=heading, text=error.detail
        )

    async def _database_error(self, request: Request, error: Exception) -> Response:
        logger.error("the dashboard cannot read the job tables", exc_info=error)
        text = str(error) if isinstance(error, ProletarianError) else type(error).__name__
        return self._page(request, "error", None, 503, heading="The database", text=text)


def _root(request: Request) -> str:
    """Return the path at which the dashboard is mounted, without a slash at the end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _notice(request: Request) -> str:
    """Return what the last action has done, as text."""
    kind, _, counts = request.cookies.get(_NOTICE, "").partition(":")
    done, _, asked = counts.partition(":")
    if kind not in KINDS or not (done.isdecimal() and asked.isdecimal()):
        return ""
    text = f"{count_text(kind, int(done))} {KINDS[kind].done}."
    rest = int(asked) - int(done)
    return f"{text} {count_text(kind, rest)} left as before." if rest > 0 else text


def _back(form: Mapping[str, list[str]]) -> str:
    """Return the page that a form was on: a path of this site."""
    back = (form.get("back") or [""])[0]
    return back if back.startswith("/") and not back.startswith(("//", "/\\")) else ""
