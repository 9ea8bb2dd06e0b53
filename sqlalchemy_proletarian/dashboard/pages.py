"""The pages: each reads in one session and renders a template."""

from __future__ import annotations

from functools import partial
from typing import Final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .. import manage
from ..clock import utcnow
from .access import require_access
from .charts import ended_chart
from .filters import STATES, Filters
from .job_page import is_complete_id, read_job
from .options import JobTables
from .overview import SPANS, read_overview, read_recurring
from .site import Site, redirect, root_of

_PAGE: Final = 50
"""How many jobs a page of a list has."""


class Pages:
    """The functions behind the addresses."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._database = site.database
        self._options = site.options

    async def front(self, request: Request) -> Response:
        """Go to the first tab."""
        await require_access(request, self._options)
        first = self._options.tables[0].slug
        return redirect(f"{root_of(request)}/{first}/")

    async def overview(self, request: Request) -> Response:
        """Show the queues, the problems, what runs, and charts."""
        tables = await self._site.enter(request)
        chart = request.query_params.get("chart", "hour")
        chart = chart if chart in SPANS else "hour"
        found = await self._database.run(lambda s: read_overview(s, tables, chart))
        drawn = ended_chart(found.history, f"Jobs that ended in the last {chart}")
        return self._site.page(request, "overview", tables, found=found, chart=chart, drawn=drawn)

    async def jobs(self, request: Request) -> Response:
        """List jobs."""
        tables = await self._site.enter(request)
        filters = Filters.of(request.query_params)
        if filters.text and (found := await self._found(tables, filters.text)):
            target = f"{root_of(request)}/{tables.slug}/jobs/{found}"
            return redirect(target)
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
        return self._site.page(
            request,
            "jobs",
            tables,
            filters=filters,
            page=page,
            problem=problem,
            states=STATES,
            now=utcnow(),
        )

    async def _found(self, tables: JobTables, text: str) -> str:
        """Return the id of a job if somebody searches for that; otherwise an empty text."""
        if not is_complete_id(tables, text):
            return ""
        view = await self._database.run(lambda s: read_job(s, tables, text, self._options))
        return "" if view is None else quote(str(view.details.job.job_id))

    async def job(self, request: Request) -> Response:
        """Show all about one job."""
        tables = await self._site.enter(request)
        text = request.path_params["job_id"]
        view = await self._database.run(lambda s: read_job(s, tables, text, self._options))
        if view is None:
            raise HTTPException(404, f"There is no job {text}. It may have been pruned.")
        return self._site.page(request, "job", tables, view=view, now=view.now)

    async def failures(self, request: Request) -> Response:
        """Show the failures of the last day, those that are alike as one."""
        tables = await self._site.enter(request)
        found = await self._database.run(
            partial(manage.failures, archived_job_model=tables.archived_job_model)
        )
        return self._site.page(request, "failures", tables, found=found, now=utcnow())

    async def recurring(self, request: Request) -> Response:
        """Show the recurring jobs."""
        tables = await self._site.enter(request)
        rows = await self._database.run(lambda s: read_recurring(s, tables))
        return self._site.page(request, "recurring", tables, rows=rows, now=utcnow())
