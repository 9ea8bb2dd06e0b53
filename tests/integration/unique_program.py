"""A worker in a process of its own, whose handler of "slow" runs until the process is killed."""

from __future__ import annotations

import sys
from datetime import timedelta
from time import sleep
from typing import Any

from sqlalchemy import create_engine

from sqlalchemy_proletarian import Handlers, QueueWorker

handlers = Handlers()


@handlers("slow")
def slow(payload: Any) -> None:
    """Never end."""
    print("started", flush=True)
    sleep(3600)


if __name__ == "__main__":
    url, lease = sys.argv[1:]
    options: Any = {"lease": timedelta(seconds=1)} if lease == "lease" else {}
    QueueWorker(create_engine(url), handlers, **options).run()
