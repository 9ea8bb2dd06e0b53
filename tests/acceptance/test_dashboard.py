"""The Grafana dashboard and the alerts: every query, on a Prometheus that scrapes a real worker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.integration.support import eventually

from .programs import ROOT
from .test_cli_worker_health import free_ports, port_of
from .worker_command import PATIENCE, Project

DEPLOY = ROOT / "docs" / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
VARIABLES = {"$queue": ".*", "$job_type": ".*", "$__rate_interval": "10s"}
"""What Grafana replaces, with "All" chosen for each."""


def program(name: str) -> str:
    """Return the path of a program of Prometheus; CI has it."""
    found = shutil.which(name)
    if found is None:
        assert "CI" not in os.environ, f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    return found


def queries() -> list[str]:
    """Return every query of the dashboard, as Grafana sends it."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [query.replace(name, value) for query in found]
    return found


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """Run a Prometheus that scrapes a port with the rules; yield the address of its API."""
    shutil.copy(DEPLOY / "prometheus-alerts.yml", folder)
    scrape = {"job_name": "workers", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["prometheus-alerts.yml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)}"
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield f"http://{address}/api/v1"
        finally:
            process.terminate()
            process.wait(30)


def ask(api: str, path: str, **parameters: str) -> Any:
    """Return what the API of Prometheus answers; None if it does not answer yet."""
    try:
        with urlopen(f"{api}/{path}?{urlencode(parameters)}", timeout=10) as response:  # noqa: S310
            return json.load(response)["data"]
    except OSError:
        return None


def values(api: str, query: str) -> list[float]:
    """Return the values of a query that are numbers."""
    found = (ask(api, "query", query=query) or {"result": []})["result"]
    return [float(one["value"][1]) for one in found if one["value"][1] != "NaN"]


def test_every_query_of_the_dashboard_returns_data(project: Project, tmp_path: Path):
    project.write("busy.py", BUSY)
    with project.started("busy:handlers", "--health-port", "0", "--threads", "2") as worker:
        project.put("chain", 0)
        project.put("fail", *range(200), process_in=None)
        with prometheus(tmp_path, port_of(worker)) as api:
            eventually(lambda: values(api, "proletarian_worker_ready") == [1], PATIENCE)
            missing = queries()

            def all_have_data() -> bool:
                missing[:] = [query for query in missing if not values(api, query)]
                return not missing

            eventually(all_have_data, PATIENCE, about=missing)
            rules = ask(api, "rules")["groups"][0]["rules"]
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
            names = ask(api, "label/__name__/values")
        worker.stop()
    used = set(re.findall(r"proletarian_\w+", " ".join(queries())))
    assert used <= set(names)


BUSY = """
import time
from sqlalchemy.orm import Session
from sqlalchemy_proletarian import Handlers
from jobs import handlers as others

handlers = Handlers()


@handlers("chain")
def chain(number: int, session: Session) -> None:
    time.sleep(0.05)
    chain.enqueue(session, number + 1)


@handlers("fail")
def fail(number: int) -> None:
    time.sleep(0.1)
    raise ValueError(number)
"""


def test_the_dashboard_can_be_imported():
    """Panels have ids of their own, do not overlap, and use the variable of the data source."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not covered & cells
        covered |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "queue", "job_type"}
    assert "id" not in DASHBOARD


def test_the_alerts_are_valid():
    command = [program("promtool"), "check", "rules", str(DEPLOY / "prometheus-alerts.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 rules found" in done.stdout
