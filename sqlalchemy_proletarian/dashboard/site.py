"""What surrounds each page: who may see it, the template, the headers, and pages of errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..errors import ProletarianError
from .access import (
    FIELD,
    HEADERS,
    DeniedError,
    require_access,
    require_own_form,
    set_token,
    token_of,
)
from .actions import KINDS, count_text
from .database import Database
from .options import DashboardOptions, JobTables
from .templating import environment

logger: logging.Logger = logging.getLogger("sqlalchemy_proletarian.dashboard")

_MAX_FORM: Final = 1_000_000
"""Bytes of a form; that of 5,000 ids has a fifth of it."""

_NOTICE: Final = "proletarian_notice"
"""The cookie with what the last action has done."""


class Site:
    """The site of one dashboard."""

    def __init__(self, database: Database, options: DashboardOptions) -> None:
        self.database = database
        self.options = options
        self._templates = environment()

    async def enter(self, request: Request) -> JobTables:
        """Check the access, and return the tables of the tab.

        :raises DeniedError: if the visitor may not see the dashboard.
        """
        await require_access(request, self.options)
        slug = request.path_params["tables"]
        for tables in self.options.tables:
            if tables.slug == slug:
                return tables
        raise HTTPException(404, "There is no such page.")

    async def enter_form(self, request: Request) -> tuple[JobTables, Mapping[str, list[str]]]:
        """Check the access and that the form is one of this site; return it, too.

        :raises DeniedError: if the visitor may not change anything.
        """
        tables = await self.enter(request)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MAX_FORM:
                raise HTTPException(413, "The form is too large.")
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        require_own_form(request, form)
        if self.options.read_only:
            msg = "This dashboard changes nothing: it is read-only."
            raise DeniedError(msg)
        return tables, form

    def page(
        self,
        request: Request,
        name: str,
        tables: JobTables | None,
        status: int = 200,
        **values: Any,
    ) -> Response:
        """Render a template.

        :param name: the name of the template.
        """
        html = self._templates.get_template(f"{name}.html").render(
            page_name=name,
            options=self.options,
            tables=tables,
            root=root_of(request),
            here=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            token_name=FIELD,
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
            DeniedError: self._denied,
            HTTPException: self._http_error,
            SQLAlchemyError: self._database_error,
            ProletarianError: self._database_error,
        }

    async def _denied(self, request: Request, error: DeniedError) -> Response:
        return self.page(request, "error", None, 403, heading="No access", text=str(error))

    async def _http_error(self, request: Request, error: HTTPException) -> Response:
        heading = "Not found" if error.status_code == 404 else "That did not work"  # noqa: PLR2004
        return self.page(
            request, "error", None, error.status_code, heading=heading, text=error.detail
        )

    async def _database_error(self, request: Request, error: Exception) -> Response:
        logger.error("the dashboard cannot read the job tables", exc_info=error)
        # The text of a driver's error may have values of a statement.
        text = str(error) if isinstance(error, ProletarianError) else type(error).__name__
        return self.page(request, "error", None, 503, heading="The database failed", text=text)


def redirect(target: str) -> Response:
    """Let the browser get another page."""
    return RedirectResponse(target, 303, headers=HEADERS)


def root_of(request: Request) -> str:
    """Return the path at which the dashboard is mounted, without a slash at the end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def set_notice(response: Response, kind: str, done: int, asked: int) -> None:
    """Let the next page say what an action has done."""
    response.set_cookie(
        _NOTICE, f"{kind}:{done}:{asked}", max_age=30, httponly=True, samesite="strict"
    )


def _notice(request: Request) -> str:
    """Return what the last action has done, as text."""
    kind, _, counts = request.cookies.get(_NOTICE, "").partition(":")
    done, _, asked = counts.partition(":")
    if kind not in KINDS or not (done.isdecimal() and asked.isdecimal()):
        return ""
    text = f"{count_text(kind, int(done))} {KINDS[kind].done}."
    rest = int(asked) - int(done)
    return f"{text} {count_text(kind, rest)} left as before." if rest > 0 else text
