"""A Clojure service and this program enqueue jobs for each other, in the same tables."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, TransitSerializer, enqueue, migrate
from sqlalchemy_proletarian.transit import Keyword

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()
transit = TransitSerializer()

FOR_CLOJURE = ":shop/queue"  # queue names as Clojure's (str keyword) returns them
FOR_PYTHON = ":shop/python"


@dataclass
class Email:
    """Clojure receives {:to "ada@example.com", :at #inst "2030-01-01"}."""

    to: str
    at: datetime


@dataclass
class Invoice:
    """Clojure sends {:customer "…", :amount 9.90M, :kind :urgent}."""

    customer: str
    amount: Decimal
    kind: Keyword


@handlers(":shop/invoice", queue=FOR_PYTHON, serializer=transit)
def invoice(payload: Invoice) -> None:
    """Run what Clojure enqueued with (proletarian/enqueue! conn :shop/invoice {…})."""
    print(f"from Clojure: {payload.customer} owes {payload.amount}, kind {payload.kind}")


# Like the Clojure service's INSERT, this sets only the columns of the Clojure library.
FROM_CLOJURE = text(
    "insert into proletarian.job"
    " (job_id, queue, job_type, payload, attempts, enqueued_at, process_at) values"
    " (gen_random_uuid(), :queue, :job_type, :payload, 0, now(), now())"
)


def main() -> None:
    """Enqueue a job for Clojure, and run a job that Clojure has enqueued."""
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        mail = Email("ada@example.com", datetime(2030, 1, 1, tzinfo=UTC))
        enqueue(session, ":shop/send-email", mail, queue=FOR_CLOJURE, serializer=transit)
        try:
            enqueue(session, "send email", mail, queue=FOR_CLOJURE, serializer=transit)
        except ValueError as error:
            print(f"refused: {error}")
        session.execute(
            FROM_CLOJURE,
            {
                "queue": FOR_PYTHON,
                "job_type": ":shop/invoice",
                "payload": '["^ ","~:customer","ada@example.com",'
                '"~:amount","~f9.90","~:kind","~:urgent"]',
            },
        )

    with Session(engine) as session:
        for job in session.scalars(select(Job).where(Job.queue == FOR_CLOJURE)):
            print("for Clojure:", job.queue, job.job_type, job.payload)

    QueueWorker(engine, handlers, queues=FOR_PYTHON, serializer=transit).drain()


if __name__ == "__main__":
    main()
