"""Jobs in two databases, sharded by queue, and one process that works on both.

Each shard has tables of its own. A session belongs to one shard, so the job and the business data
of a customer commit together, in the customer's database.
"""

import signal
import tempfile
import threading
from contextlib import ExitStack

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Base, Handlers, QueueWorker, enqueue, manage

handlers = Handlers()


@handlers("invoice")
def invoice(customer: str) -> None:
    """Print an invoice."""
    print("invoice for", customer)


def run_all(workers: list[QueueWorker], stop: threading.Event) -> None:
    """Run workers until ``stop`` is set; they then finish their jobs at the same time."""
    with ExitStack() as running:
        for worker in workers:
            running.enter_context(worker)
        stop.wait()
        for worker in workers:
            worker.request_stop()  # all of them, before the first one is waited for


if __name__ == "__main__":
    without_schema = {"schema_translate_map": {"proletarian": None}}  # for SQLite only
    folder = tempfile.mkdtemp()
    shards: dict[str, Engine] = {
        region: create_engine(f"sqlite:///{folder}/{region}.db", execution_options=without_schema)
        for region in ("eu", "us")
    }
    for engine in shards.values():
        Base.metadata.create_all(engine)

    for region, customer in (("eu", "Ada"), ("us", "Grace"), ("eu", "Edsger")):
        with Session(shards[region]) as session, session.begin():
            enqueue(session, "invoice", customer, queue=region)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threading.Timer(1, stop.set).start()  # this example ends by itself
    run_all(
        [QueueWorker(engine, handlers, queues=region) for region, engine in shards.items()], stop
    )
    for region, engine in shards.items():
        with Session(engine) as session:
            done = manage.stats(session).queues[region]
            print(region, "due:", done.due, "succeeded:", done.succeeded)
