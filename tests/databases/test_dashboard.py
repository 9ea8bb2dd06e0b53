"""The dashboard on every database."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import manage
from tests.dashboard.site import Visitor
from tests.integration.support import archived, fail, put

from .places import Place


def test_jobs_are_seen_and_changed(producer: Place, engine: Engine) -> None:
    failed = put(engine, "mail", {"to": "Grüße 😀"})
    producer.run_all(engine, fail)
    later = put(engine, "later", process_in=timedelta(hours=1))
    with Session(engine) as session, session.begin():
        manage.schedule(session, "nightly", job_type="mail", cron="0 3 * * *")
    visitor = Visitor(engine)
    assert "mail fails: 1 of 1 job in the last 5 min." in visitor.text("/jobs/")
    assert "nightly" in visitor.text("/jobs/recurring")
    assert "1 mail " in visitor.text("/jobs/failures")
    assert "Grüße 😀" in visitor.text(f"/jobs/jobs/{failed}")
    assert "mail" in visitor.text("/jobs/jobs?state=failure&text=grüße")
    assert "1 job enqueued again." in visitor.act("retry", failed)
    assert "1 job cancelled." in visitor.act("cancel", later)
    assert "1 queue paused." in visitor.act("pause", "default")
    assert "paused" in visitor.text("/jobs/")
    assert sorted(str(job.status) for job in archived(engine)) == ["cancelled", "failure"]
