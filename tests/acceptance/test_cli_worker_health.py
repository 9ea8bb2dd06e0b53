"""``proletarian worker --health-port``: probes and metrics of a real process."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.support import eventually

from .worker_command import PATIENCE, Project, Started


def free_ports(number: int) -> int:
    """Return the first of so many ports that are free."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, number):
        try:
            for port in range(first, first + number):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    pytest.fail("no ports are free")


def get(port: int, path: str) -> tuple[int, str]:
    """Return the status and the body of an answer; 0 without an answer."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
        except OSError:
            return 0, ""
        return response.status, response.read().decode()


def port_of(worker: Started) -> int:
    """Return the port that the banner shows."""
    worker.wait_for(r"health +http://127\.0\.0\.1:\d+ \(/live, /ready, /metrics\)")
    return int(worker.output.partition("http://127.0.0.1:")[2].split()[0])


def metrics(port: int) -> dict[tuple[str, ...], float]:
    """Return the values of metrics by name and the values of labels."""
    status, body = get(port, "/metrics")
    assert status == 200, body
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


BOTH = pytest.mark.parametrize("target", ["jobs:handlers", "jobs:coroutines"])


@pytest.mark.parametrize("options", [(), ("--asyncio",), ("--lease", "30s")], ids=" ".join)
def test_metrics_of_jobs_that_succeed_fail_and_retry(project: Project, options: Any):
    """The numbers of a process that was started with a port, and of the table."""
    project.write("retrying.py", RETRYING)
    target = "retrying:handlers", "--health-port", "0", *options
    with project.started(*target) as worker:
        port = port_of(worker)
        eventually(lambda: get(port, "/ready")[0] == 200, PATIENCE, about=worker)
        project.put_writes(range(5))
        project.put("fail", "always")
        project.put("flaky", None)
        project.put("fail", "elsewhere", queue="elsewhere")
        eventually(lambda: len(project.statuses()) == 7, PATIENCE, about=worker)
        found = metrics(port)
        worker.stop()
    runs = {key[1:]: value for key, value in found.items() if key[0] == "proletarian_jobs_total"}
    assert runs == {
        ("write", "success"): 5,
        ("fail", "failure"): 1,
        ("flaky", "retried"): 2,
        ("flaky", "success"): 1,
    }
    assert found["proletarian_job_duration_seconds_count", "flaky"] == 3
    assert found["proletarian_job_wait_seconds_count", "write"] == 5
    assert found["proletarian_queue_jobs", "elsewhere", "due"] == 1
    assert found["proletarian_queue_jobs", "default", "due"] == 0
    assert found["proletarian_queue_oldest_due_seconds", "elsewhere"] > 0
    assert found["proletarian_worker_ready",] == 1
    assert found["proletarian_scrape_error",] == 0
    assert "process_resident_memory_bytes" in {key[0] for key in found}


RETRYING = """
from jobs import handlers

tries = []


@handlers("flaky", retry={"retries": 5, "delays": [10]})
def flaky(payload: None) -> None:
    tries.append(payload)
    if len(tries) < 3:
        raise ValueError("not yet")
"""


@BOTH
def test_a_worker_that_stops_is_not_ready_and_answers_until_it_has_stopped(
    project: Project, target: str
):
    project.put_writes(seconds=3)
    with project.started(target, "--health-port", "0") as worker:
        port = port_of(worker)
        worker.wait_for("begins")
        assert get(port, "/ready")[0] == 200
        worker.send()
        eventually(lambda: get(port, "/ready")[0] == 503, PATIENCE, about=worker)
        status, body = get(port, "/live")
        assert status == 200
        assert json.loads(body)["state"] == "stopping"
        assert worker.ends() == 0
        assert get(port, "/live")[0] == 0
    assert project.ran() == [1]


def test_a_worker_that_waits_for_its_database_is_live_and_not_ready(project: Project):
    """It answers before the database does."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = free_ports(1)
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none?connect_timeout=2"
        silent.close()
        options = "--health-port", str(port), "--wait", "60s"
        with project.started("jobs:handlers", *options, PROLETARIAN_URL=url) as worker:
            eventually(lambda: get(port, "/live")[0] == 200, PATIENCE, about=worker)
            status, body = get(port, "/ready")
            assert status == 503
            assert json.loads(body)["problems"] == ["the worker has not started yet"]


def test_a_port_that_is_taken_is_told_in_one_line_before_the_worker_starts(project: Project):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = project.run("jobs:handlers", "--health-port", str(port), "--drain")
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: cannot serve health at 127.0.0.1:{port}: Address already in use; choose another "
        f"--health-port or --health-host\n"
    )


def test_options_that_do_not_fit(project: Project):
    done = project.run("jobs:handlers", "--health-port", "65535", "--processes", "2")
    assert done.returncode == 2
    assert "leaves no ports for 2 processes" in done.stderr
    done = project.run("jobs:handlers", "--health-host", "0.0.0.0")  # noqa: S104
    assert done.returncode == 2
    assert "--health-host needs --health-port" in done.stderr


def test_each_process_has_a_port_of_its_own_which_its_successor_takes_over(project: Project):
    """Process k serves at the k-th port, also after the process before was killed."""
    port = free_ports(2)
    options = "--processes", "2", "--health-port", str(port)
    with project.started("jobs:handlers", *options) as worker:
        for each in (port, port + 1):
            eventually(lambda each=each: get(each, "/ready")[0] == 200, PATIENCE, about=worker)
        assert "other processes at the next ports" in worker.output
        pids = {child.pid for child in worker.children()}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        worker.wait_for("worker-starting", 4)
        for each in (port, port + 1):
            eventually(lambda each=each: get(each, "/ready")[0] == 200, PATIENCE, about=worker)
        assert not pids & {child.pid for child in worker.children()}
        worker.stop()


def test_it_can_be_set_in_the_project_and_in_the_environment(project: Project):
    settings = '[tool.proletarian.worker]\nhealth-port = 0\nhealth-host = "localhost"\n'
    project.write("pyproject.toml", settings)
    with project.started("jobs:handlers", "--log-format", "json") as worker:
        worker.wait_for("health at http://")
        worker.stop()


def test_a_blocked_event_loop_answers(project: Project):
    project.write("blocking.py", BLOCKING)
    project.put("block", None)
    with project.started("blocking:handlers", "--health-port", "0") as worker:
        port = port_of(worker)
        worker.wait_for("blocked")
        for path in ("/live", "/ready", "/metrics"):
            assert get(port, path)[0] == 200
        assert "released" not in worker.output
        assert json.loads(get(port, "/live")[1])["running"] == 1
        worker.wait_for("released")
        worker.stop()


BLOCKING = """
import time
from sqlalchemy_proletarian import Handlers
handlers = Handlers()

@handlers("block")
async def block(payload: None) -> None:
    print("blocked", flush=True)
    time.sleep(5)
    print("released", flush=True)
"""
