"""A worker that serves its health and its metrics, and what an orchestrator and Prometheus see."""

import json
import os
from time import sleep
from urllib.request import urlopen

from prometheus_client import Counter
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker, health, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()

mails = Counter("shop_mails_total", "Mails that were sent.", ["kind"])
"""A metric of the program itself."""


@handlers("send-mail", retry={"retries": 2, "delays": [100]})
def send_mail(kind: str) -> None:
    """Send a mail, which fails for one kind."""
    if kind == "spam":
        msg = "the mail server refuses it"
        raise ConnectionError(msg)
    mails.labels(kind).inc()


def ask(address: str) -> str:
    """Return what a probe or Prometheus receives."""
    with urlopen(address) as response:  # noqa: S310 - an address of this host
        text: str = response.read().decode()
        return text


def main() -> None:
    """Serve while the worker runs."""
    migrate.upgrade(url)
    worker = QueueWorker(engine, handlers, threads=2)
    with health.serve(worker, port=0) as served, worker:
        with Session(engine) as session, session.begin():
            for kind in ("welcome", "invoice", "spam"):
                send_mail.enqueue(session, kind)
        while "failure" not in ask(f"{served.url}/metrics"):
            sleep(0.1)

        seen = worker.health()
        print(f"{seen.state}: {seen.members_alive} of {seen.members} threads are alive")
        ready = json.loads(ask(f"{served.url}/ready"))
        print(f"ready: {ready['ready']}, problems: {ready['problems']}")
        for line in ask(f"{served.url}/metrics").splitlines():
            if line.startswith(("proletarian_jobs_total", "shop_mails_total")):
                print(line)
    print(f"afterwards: {worker.health().problems[0]}")


if __name__ == "__main__":
    main()
