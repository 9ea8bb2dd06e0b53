"""The job tables in SQLAdmin, beside your own models.

SQLAdmin counts all rows of a table for each page. That is fine for the queue, and slow for a large
archive: the dashboard of this library reads a bounded number of rows.
"""

import os

from sqladmin import Admin, ModelView
from sqlalchemy import create_engine
from starlette.applications import Starlette

from sqlalchemy_proletarian import ArchivedJob, Job, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
migrate.upgrade(url)


class JobAdmin(ModelView, model=Job):
    """The queued jobs. Nothing can be changed: a worker may have locked the row."""

    name_plural = "Queued jobs"
    can_create = can_edit = can_delete = False
    column_list = ["job_id", "queue", "job_type", "attempts", "process_at"]
    column_sortable_list = ["process_at"]


class ArchivedJobAdmin(ModelView, model=ArchivedJob):
    """The archived jobs, the last one first."""

    name_plural = "Archived jobs"
    can_create = can_edit = can_delete = False
    column_list = ["job_id", "queue", "job_type", "status", "attempts", "finished_at"]
    column_default_sort = ("finished_at", True)


app = Starlette()
admin = Admin(app, engine)
admin.add_view(JobAdmin)
admin.add_view(ArchivedJobAdmin)

if __name__ == "__main__":
    from sqlalchemy.orm import Session
    from starlette.testclient import TestClient

    from sqlalchemy_proletarian import enqueue

    with Session(engine) as session, session.begin():
        job_id = enqueue(session, "welcome", {"email": "bob@example.com"}).job_id

    page = TestClient(app).get("/admin/job/list")
    print("the list:", page.status_code, "welcome" in page.text)
    page = TestClient(app).get(f"/admin/job/details/{job_id}")
    print("a job:", page.status_code, "bob@example.com" in page.text)
