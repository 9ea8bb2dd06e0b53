"""A dashboard of the jobs in a web application.

Run it with ``uvicorn dashboard_app:app``, and visit http://127.0.0.1:8000/jobs/ as somebody who is
logged in.
"""

import os
from typing import Any

from sqlalchemy import create_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from sqlalchemy_proletarian import migrate
from sqlalchemy_proletarian.dashboard import Action, dashboard

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
migrate.upgrade(url)


def user_of(request: Request) -> str:
    """Return who makes a request: here, whom the proxy in front of the application names."""
    return request.headers.get("x-forwarded-user", "")


def is_operator(request: Request) -> bool:
    """Return whether somebody may see and use the dashboard."""
    return user_of(request) in {"ada", "grace"}


def redact(job_type: str, payload: Any) -> Any:
    """Return what the dashboard shows of a payload: not the address."""
    if isinstance(payload, dict) and "email" in payload:
        return {**payload, "email": "(hidden)"}
    return payload


def write_down(action: Action) -> None:
    """Keep what operators do."""
    print(f"{action.by}: {action.name}, {action.done} of {len(action.targets)}")


app = Starlette(
    routes=[
        Mount(
            "/jobs",
            dashboard(
                engine, authorize=is_operator, actor=user_of, redact=redact, on_action=write_down
            ),
        )
    ]
)

if __name__ == "__main__":
    import re

    from sqlalchemy.orm import Session
    from starlette.testclient import TestClient

    from sqlalchemy_proletarian import enqueue

    with Session(engine) as session, session.begin():
        job = enqueue(session, "welcome", {"email": "bob@example.com", "language": "en"})
        job_id = job.job_id

    client = TestClient(app)
    print("a visitor:", client.get("/jobs/jobs/").status_code)
    client.headers["x-forwarded-user"] = "ada"
    page = client.get(f"/jobs/jobs/jobs/{job_id}").text
    print("the address is hidden:", "(hidden)" in page and "bob@example.com" not in page)
    token = re.search(r'name="token" value="([^"]+)"', page)
    form = {"token": token[1] if token else "", "action": "cancel", "name": str(job_id)}
    client.post("/jobs/jobs/act", data=form)
