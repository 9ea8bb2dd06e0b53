"""The files in ``docs/deploy``: their options are valid, and they leave the worker time to stop."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from sqlalchemy_proletarian.cli.worker import parameters
from sqlalchemy_proletarian.cli.worker.command import worker
from sqlalchemy_proletarian.cli.worker.supervisor import _MORE_THAN_GRACE

from .programs import EXAMPLES, ROOT

DEPLOY = ROOT / "docs" / "deploy"


def options_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command that begins with ``worker``, as the command reads them."""
    name, *rest = arguments
    assert name == "worker"
    found = worker.make_context("worker", list(rest)).params
    module = found["target"].partition(":")[0]
    assert (EXAMPLES / f"{module}.py").exists()
    return found


def docker_command() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    return json.loads(re.search(r"^CMD (.*)$", text, re.MULTILINE)[1])  # type: ignore[index,no-any-return]


def seconds(text: str) -> timedelta:
    return parameters.duration(text)


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "proletarian-worker.service")
    return parser["Service"]


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def test_the_systemd_unit_leaves_the_supervisor_time_to_stop():
    service = unit()
    program, *arguments = shlex.split(service["ExecStart"])
    options = options_of(arguments)
    assert program.endswith("/proletarian")
    more = timedelta(seconds=_MORE_THAN_GRACE)
    assert timedelta(seconds=int(service["TimeoutStopSec"])) > options["shutdown_timeout"] + more
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert options["processes"] > 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path):
    """The program is replaced by one that exists, as does the user."""
    text = (DEPLOY / "proletarian-worker.service").read_text()
    text = text.replace("/srv/shop/.venv/bin/proletarian", "/bin/true").replace("=shop", "=root")
    file = tmp_path / "proletarian-worker.service"
    file.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if file.name in line]
    assert complaints == []


def test_the_image_runs_the_command_without_a_shell():
    options = options_of(docker_command())
    assert options["log_format"] == "json"
    assert 'ENTRYPOINT ["proletarian"]' in (DEPLOY / "Dockerfile").read_text()
    assert "STOPSIGNAL SIGTERM" in (DEPLOY / "Dockerfile").read_text()


def test_compose_leaves_the_worker_time_to_stop():
    (compose,) = documents("compose.yaml")
    services = compose["services"]
    grace = seconds(services["worker"]["stop_grace_period"])
    assert grace > options_of(docker_command())["shutdown_timeout"]
    assert services["worker"]["stop_signal"] == "SIGTERM"
    assert "command" not in services["worker"], "that of the image"
    for service in services.values():
        assert {"image", "build"} & service.keys()
        assert set(service.get("depends_on", {})) <= services.keys()
    assert services["worker"]["environment"] == services["migrate"]["environment"]


def test_compose_asks_the_port_of_the_image():
    (compose,) = documents("compose.yaml")
    *command, program = compose["services"]["worker"]["healthcheck"]["test"]
    assert command == ["CMD", "python", "-c"]
    compile(program, "healthcheck", "exec")
    options = options_of(docker_command())
    assert f"http://{options['health_host']}:{options['health_port']}/ready" in program


def test_kubernetes_probes_reach_the_worker():
    """They come from outside of the pod, and give a worker time before they kill it."""
    _, deployment = documents("kubernetes.yaml")
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    options = options_of(container["args"])
    assert options["health_host"] == "0.0.0.0"  # noqa: S104
    assert options["processes"] == 1
    (port,) = container["ports"]
    assert port["containerPort"] == options["health_port"]
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}
    paths = [probe["httpGet"]["path"] for probe in probes.values()]
    assert paths == ["/live", "/live", "/ready"]
    assert all(probe["timeoutSeconds"] >= 5 for probe in probes.values())
    annotations = template["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(options["health_port"])


def test_kubernetes_leaves_the_worker_time_to_stop():
    job, deployment = documents("kubernetes.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    template = deployment["spec"]["template"]
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    options = options_of(container["args"])
    grace = timedelta(seconds=template["spec"]["terminationGracePeriodSeconds"])
    assert grace > options["shutdown_timeout"]
    assert "command" not in container, "the entry point of the image is the command"
    (migrating,) = job["spec"]["template"]["spec"]["containers"]
    assert migrating["env"] == container["env"]
