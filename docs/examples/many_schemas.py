"""One process runs the jobs of many tenants, whose job tables are in a schema for each tenant.

A worker for each schema needs two or three connections of its own. Here threads take turns: one
statement finds the schemas with due jobs, and each thread runs the jobs of one of them for a while.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Timer

from sqlalchemy import (
    Engine,
    MetaData,
    Select,
    create_engine,
    exists,
    func,
    literal,
    select,
    union_all,
)
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from sqlalchemy_proletarian import Base, Handlers, QueueWorker, enqueue

QUEUE = "default"
SLICE = 5.0  # seconds that a schema may keep a thread while others wait

handlers = Handlers()


@handlers("greet")
def greet(name: str) -> None:
    """Greet a tenant."""
    print(f"Hello, {name}!")


def tenant(engine: Engine, schema: str) -> Engine:
    """Return the engine for one tenant: the same pool, other tables."""
    return engine.execution_options(schema_translate_map={"proletarian": schema})


class Tenants:
    """The workers of all schemas, made once."""

    def __init__(self, engine: Engine, schemas: list[str]) -> None:
        self.engine = engine
        self.workers = {
            schema: QueueWorker(tenant(engine, schema), handlers, queues=QUEUE, name=schema)
            for schema in schemas
        }
        self.find_due = union_all(*map(self._has_due, schemas))

    def _has_due(self, schema: str) -> Select[str]:
        job = Base.metadata.tables["proletarian.job"].to_metadata(MetaData(), schema=schema)
        # All three columns of the index: one probe for each priority, however many jobs wait.
        return select(literal(schema)).where(
            exists().where(
                job.c.queue == QUEUE,
                job.c.priority.in_(range(10)),
                job.c.process_at <= func.now(),
            )
        )

    def run_for_a_while(self, schema: str) -> int:
        """Run the due jobs of one schema, and return how many ran."""
        worker = self.workers[schema]
        timer = Timer(SLICE, worker.request_stop)
        timer.start()
        try:
            return worker.drain()
        finally:
            timer.cancel()

    def run_once(self, threads: ThreadPoolExecutor) -> int:
        """Run what is due in all schemas, each for a while; call it in a loop, with a pause."""
        with self.engine.connect() as connection:
            due = connection.scalars(self.find_due).all()
        return sum(threads.map(self.run_for_a_while, due))


if __name__ == "__main__":
    engine = create_engine(os.environ["DATABASE_URL"])
    schemas = [f"tenant_{n}" for n in range(20)]
    with engine.begin() as connection:
        for schema in schemas:
            connection.execute(CreateSchema(schema))
        # In production: one revision that calls migrations.upgrade(schema=…) for each schema.
        for schema in schemas:
            tables = connection.execution_options(schema_translate_map={"proletarian": schema})
            Base.metadata.create_all(tables)
    for schema in ("tenant_3", "tenant_7", "tenant_7"):
        with Session(tenant(engine, schema)) as session, session.begin():
            enqueue(session, "greet", schema)
    tenants = Tenants(engine, schemas)
    with ThreadPoolExecutor(max_workers=4) as threads:
        print("jobs:", tenants.run_once(threads))
        print("jobs:", tenants.run_once(threads))
