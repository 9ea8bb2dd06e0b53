"""Actions: a page that asks whether to do something, and doing it."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..callbacks import call_user_function
from .actions import KINDS, MOST, Selection, count_text, perform
from .options import Action
from .site import Site, logger, redirect, root_of, set_notice


class Changes:
    """The functions behind the addresses of forms."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._options = site.options

    async def confirm(self, request: Request) -> Response:
        """Ask whether to do something."""
        tables, form = await self._site.enter_form(request)
        selection = _selection(form)
        names = await self._site.database.run(lambda s: selection.resolved(s, tables))
        return self._site.page(
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
        tables, form = await self._site.enter_form(request)
        selection = _selection(form)
        actor = str(self._options.actor(request)) or "unknown"

        def change(session: Session) -> int:
            return perform(session, tables, selection.kind, selection.names, actor)

        done = await self._site.database.run(change)
        self._report(Action(selection.kind, actor, tables.name, selection.names, done))
        target = _back(form) or f"{root_of(request)}/{tables.slug}/"
        response = redirect(target)
        set_notice(response, selection.kind, done, len(selection.names))
        return response

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


def _selection(form: Mapping[str, list[str]]) -> Selection:
    selection = Selection.of(form)
    if selection is None:
        raise HTTPException(400, "The form is not complete.")
    if not (selection.names or selection.filters):
        raise HTTPException(400, "Nothing is selected.")
    return selection


def _back(form: Mapping[str, list[str]]) -> str:
    """Return the page that a form was on: a path of this site."""
    back = (form.get("back") or [""])[0]
    return back if back.startswith("/") and not back.startswith(("//", "/\\")) else ""
