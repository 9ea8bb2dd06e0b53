"""A dashboard as a test sees it over HTTP."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from sqlalchemy_proletarian.dashboard import dashboard

ROOT = "/admin/queue"


class Visitor:
    """Visits a dashboard that is mounted in an application."""

    def __init__(self, bind: Any, **options: Any) -> None:
        options.setdefault("authorize", lambda _request: True)
        app = Starlette(routes=[Mount(ROOT, dashboard(bind, **options))])
        self.client = TestClient(app, raise_server_exceptions=True)

    def get(self, path: str, status: int = 200) -> str:
        """Return the HTML of a page."""
        response = self.client.get(f"{ROOT}{path}")
        assert response.status_code == status, response.text
        return response.text

    def text(self, path: str, status: int = 200) -> str:
        """Return the text of a page."""
        return text_of(self.get(path, status))

    def act(self, action: str, *names: Any, **fields: Any) -> str:
        """Confirm an action and do it; return the text of the page that follows."""
        html = self.post("confirm", action=action, name=[str(name) for name in names], **fields)
        chosen = re.findall(r'name="name" value="([^"]*)"', html)
        return text_of(self.post("act", action=action, name=list(map(unescape, chosen))))

    def post(self, where: str, status: int = 200, headers: Any = None, **fields: Any) -> str:
        """Send a form, with the token of the site unless another one is given."""
        fields.setdefault("token", self.token())
        fields.setdefault("back", f"{ROOT}/jobs/jobs")
        response = self.client.post(f"{ROOT}/jobs/{where}", data=fields, headers=headers)
        assert response.status_code == status, response.text
        return response.text

    def token(self) -> str:
        """Return the token of the site."""
        found = re.search(r'name="token" value="([^"]+)"', self.get("/jobs/jobs?state=archived"))
        return found[1] if found else self.client.cookies["proletarian_token"]


def text_of(html: str) -> str:
    """Return the text of a page, without tags."""
    body = html[html.index("<main") : html.index("</main>")]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def visit(engine: Engine, **options: Any) -> Visitor:
    """Return a visitor of the dashboard of an engine."""
    return Visitor(engine, **options)
