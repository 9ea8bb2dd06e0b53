"""One process: load the target, build the worker, print the banner, and run it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from threading import Event, Timer, main_thread
from time import monotonic, sleep
from types import FrameType
from typing import Any, Final

import click
from sqlalchemy import URL

from ...database.connections import cannot_connect
from ...errors import ShutdownTimeoutError
from ...runtime.signals import on_stop_signals
from ..explain import cannot_connect_message, message_of
from .build import Built, build_worker
from .health import serving_health
from .limits import memory, watch_limits
from .link import READY, REPLACE, Link
from .logs import logger, set_up_logging
from .parameters import duration_text, size_text
from .plan import ERROR, INTERRUPTED, STOPPED, TIMED_OUT, Plan
from .survey import survey
from .target import load_target

_BETWEEN_TRIES: Final = 0.5
"""Seconds between two tries to reach the database."""


def serve(plan: Plan, link: Link | None) -> int:
    """Run a worker in this process until it ends; return the exit code of the command.

    :param link: the line to the supervisor, if there is one.
    """
    url: URL | None = None
    try:
        with _stop_while_starting():
            target = load_target(plan.target)
            ours = set_up_logging(plan.log_level, plan.log_format, debug=plan.debug)
            built = build_worker(target, plan)
            url = built.engine.url
            with serving_health(built, plan, link) as health:
                process = _Process(built, plan, link, logs=ours, health=health)
                return process.run_in_a_loop() if built.in_a_loop else process.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except ShutdownTimeoutError as error:
        logger.error("%s", error)
        return TIMED_OUT
    except Exception as error:
        if plan.debug:
            traceback.print_exception(error)
        message = error.message if isinstance(error, click.ClickException) else None
        message = message or message_of(error, url)
        if message is None:
            raise
        click.echo(f"Error: {message}", err=True)
        return ERROR


@contextmanager
def _stop_while_starting() -> Generator[None]:
    """End the program with 0 at a signal, until the worker handles signals itself.

    The first process of a container ignores SIGTERM unless it handles it.
    """

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        sys.exit(STOPPED)

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Process:
    """A worker that is about to run in this process.

    :param logs: whether the command has set up logging.
    :param health: where it serves its health, if it does.
    """

    def __init__(
        self, built: Built, plan: Plan, link: Link | None, *, logs: bool, health: str | None
    ) -> None:
        self._built = built
        self._worker: Any = built.worker
        self._settings = built.core.settings
        self._plan = plan
        self._link = link
        self._logs = logs
        self._health = health
        self._ended = Event()
        self._late = False

    def run(self) -> int:
        """Run a QueueWorker."""
        try:
            self._look()
            self._announce(stop=self._worker.request_stop)
            if not self._plan.drain:
                self._worker.run()
                return STOPPED
            with self._draining():
                return self._drained(self._worker.drain())
        except KeyboardInterrupt:
            return self._interrupted()
        finally:
            self._ended.set()
            if self._built.own_engine is not None:
                self._built.own_engine.dispose()

    def run_in_a_loop(self) -> int:
        """Run an AsyncQueueWorker."""
        import asyncio

        from sqlalchemy.util import greenlet_spawn

        async def main() -> int:
            try:
                await greenlet_spawn(self._look)
                call_soon = asyncio.get_running_loop().call_soon_threadsafe
                self._announce(stop=partial(call_soon, self._worker.request_stop))
                if not self._plan.drain:
                    await self._worker.run()
                    return STOPPED
                with self._draining():
                    return self._drained(await self._worker.drain())
            finally:
                if self._built.own_engine is not None:
                    await self._built.own_engine.dispose()

        try:
            return asyncio.run(main())
        except KeyboardInterrupt:
            return self._interrupted()
        finally:
            self._ended.set()

    # Before the worker starts.

    def _look(self) -> None:
        """Check the database, and print the banner with what is wrong, or log it."""
        if self._link is not None and not self._link.first:
            return  # the first process has looked
        plan = self._plan
        warnings = self._reached()
        if not self._logs and {"log_level", "log_format"} & plan.given:
            warnings.append(
                "the program sets up logging itself: --log-level and --log-format have no effect"
            )
        if plan.quiet or plan.log_format == "json":
            if self._health is not None:
                logger.info("health at %s", self._health)
            for warning in warnings:
                logger.warning("%s", warning)
        else:
            from .banner import print_banner

            print_banner(self._built, plan, warnings, self._health)

    def _reached(self) -> list[str]:
        """Return the warnings, when the database can be reached."""
        deadline = monotonic() + self._plan.wait.total_seconds()
        has_told = False
        while True:
            try:
                return survey(self._built)
            except Exception as error:
                if not cannot_connect(error) or monotonic() >= deadline:
                    raise
                if not has_told:
                    has_told = True
                    message = cannot_connect_message(error, self._built.engine.url)
                    wait = duration_text(self._plan.wait)
                    logger.warning("%s; trying for %s", message, wait)
            sleep(_BETWEEN_TRIES)

    def _announce(self, *, stop: Callable[[], object]) -> None:
        """Report the start to the supervisor, then obey its requests and the limits."""
        link, plan = self._link, self._plan
        if link is None:
            return
        if plan.max_memory is not None and (size := memory()) > plan.max_memory:
            msg = (
                f"this process takes {size_text(size)} before it runs any job: --max-memory must "
                f"be more"
            )
            raise click.ClickException(msg)
        link.tell(READY, self._settings.shutdown_timeout)
        link.watch(stop, lambda: self._worker.stopping or self._ended.is_set())
        if plan.recycles:
            watch_limits(plan, self._runs, partial(self._replace, link, stop), self._ended)

    def _runs(self) -> int:
        pool = self._built.core.pool
        return 0 if pool is None else sum(runner.ran for runner in pool.runners)

    def _replace(self, link: Link, stop: Callable[[], object], reason: str) -> None:
        logger.info("process %s stops and is replaced: %s", os.getpid(), reason)
        link.tell(REPLACE)
        stop()

    # The end.

    @contextmanager
    def _draining(self) -> Generator[None]:
        """Stop at a signal, and after ``shutdown_timeout`` as at a second signal."""

        def give_up() -> None:
            if not self._ended.is_set():
                self._late = True
                # The main thread, which alone handles signals, may run the handler.
                signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)

        def stop() -> None:
            self._worker.request_stop()
            timer = Timer(self._settings.shutdown_timeout, give_up)
            timer.daemon = True
            timer.start()

        with on_stop_signals(stop, again=lambda: self._worker.stopping):
            yield

    def _drained(self, runs: int) -> int:
        logger.info("drained: %s", "1 run" if runs == 1 else f"{runs} runs")
        return STOPPED

    def _interrupted(self) -> int:
        if not self._late:
            return INTERRUPTED
        timeout = duration_text(self._settings.shutdown_timeout)
        logger.error("handlers were still running after %s: their jobs are due again", timeout)
        return TIMED_OUT
