"""Health and metrics of workers over HTTP.

::

    worker = QueueWorker(engine, handlers)
    with health.serve(worker, port=8080):
        worker.run()

It answers ``/live`` and ``/ready`` for the probes of an orchestrator, and ``/metrics`` for
Prometheus if the extra ``prometheus`` is installed. ``proletarian worker --health-port`` does the
same. The server is a thread, so it answers although handlers block the event loop, and it works the
same for an AsyncQueueWorker.

An application that serves its own ``/metrics`` uses :func:`export_metrics` instead.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from ..extras import require_extra
from ..worker.health import Health
from .server import HealthServer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ..worker.in_loop import AsyncQueueWorker
    from ..worker.threaded import QueueWorker

    Worker: TypeAlias = QueueWorker | AsyncQueueWorker

__all__ = ["Health", "HealthServer", "export_metrics", "serve"]

LOCAL = "127.0.0.1"


@contextmanager
def serve(
    worker: Worker,
    *,
    port: int,
    host: str = LOCAL,
    registry: CollectorRegistry | None = None,
) -> Generator[HealthServer]:
    """Serve the health of a worker, and the metrics of the process, in the block.

    Enter the block before the worker starts: metrics of jobs are counted by workers that start in
    it. Without the extra ``prometheus``, ``/metrics`` answers with 501 and what to install.

    :param worker: the QueueWorker or AsyncQueueWorker.
    :param port: the TCP port; 0 for any that is free, which is the result's ``port``.
    :param host: the address to listen at. By default only programs on the same host, or in the same
        pod or container, are answered. Use "0.0.0.0" for the probes of Kubernetes and for a
        Prometheus on another host, or "::" with IPv6.
    :param registry: the registry of :mod:`prometheus_client` that ``/metrics`` shows; by default
        the one of the process.
    :return: a context manager; ``as`` gives the :class:`HealthServer`.
    :raises OSError: if it cannot listen, as when the port is taken; the message says what to do.

    .. versionadded:: 0.1
    """
    with ExitStack() as stack:
        server = HealthServer(worker.health, host, port)
        stack.callback(server.close)
        if registry is not None or has_prometheus():
            stack.enter_context(export_metrics(worker, registry=registry))
            server.show_metrics(registry)
        server.start()
        yield server


@contextmanager
def export_metrics(worker: Worker, *, registry: CollectorRegistry | None = None) -> Generator[None]:
    """Keep the metrics of a worker, its queues and its jobs in a registry, in the block.

    Enter the block before the worker starts. Counted jobs stay in the registry after it.

    :param worker: the QueueWorker or AsyncQueueWorker.
    :param registry: a registry of :mod:`prometheus_client`; by default the one of the process.
    :return: a context manager.
    :raises ImportError: without the extra ``prometheus``.

    .. versionadded:: 0.1
    """
    require_extra("prometheus_client", "prometheus")
    from .metrics import exported

    with exported(worker._core, registry):
        yield


def has_prometheus() -> bool:
    """Return whether the extra ``prometheus`` is installed."""
    return find_spec("prometheus_client") is not None
