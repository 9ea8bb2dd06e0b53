"""Runs the measurements for all contenders, round robin, and keeps all values."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
from sqlalchemy import URL

from .contender import Contender, FailedError, NotOfferedError
from .measures import Bench, Measurement, Scale
from .server import Server

Progress = Callable[[str], None]

# Percent of all cores: above this, other work affects the numbers more than the code does.
BUSY = 15.0


@dataclass
class Cell:
    """The values of one contender in one measurement, or the reason why there are none."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    reason: str | None = None

    def median(self, key: str) -> float | None:
        """Return the median of a metric over the repetitions."""
        return statistics.median(values) if (values := self.values.get(key)) else None


@dataclass
class Report:
    """The complete results of a run."""

    measurements: list[Measurement] = field(default_factory=list)
    contenders: list[type[Contender]] = field(default_factory=list)
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    """The numbers of rows in the full tables."""
    warnings: list[str] = field(default_factory=list)


class Harness:
    """One run of the benchmark on one server."""

    def __init__(self, url: URL, scale: Scale, marks: Path, progress: Progress) -> None:
        self._server = Server(url)
        self._bench = Bench(self._server, marks, scale)
        self._progress = progress
        self._templates: dict[str, str] = {}
        self.report = Report(facts=machine(self._server), sizes=scale.backlogs)

    def run(
        self,
        contenders: Iterable[type[Contender]],
        measurements: Iterable[Measurement],
        repetitions: int,
    ) -> Report:
        """Run the measurements and return the report; a failed contender does not end the run."""
        report = self.report
        report.facts["busy_before_percent"] = busy = psutil.cpu_percent(interval=1.0)
        report.facts["source"] = source = fingerprint()
        if busy > BUSY:
            report.warnings.append(
                f"the machine was {busy:.0f} % busy with other work before the run: check the "
                "spread and do not compare medians within it"
            )
        measurements = list(measurements)
        for contender in contenders:
            takes_part = any(measurement.includes(contender) for measurement in measurements)
            if takes_part and self._install(contender):
                report.contenders.append(contender)
        try:
            for measurement in measurements:
                report.measurements.append(measurement)
                # Round robin, so that changes of the machine's speed affect all contenders alike.
                for repetition in range(min(measurement.repetitions or repetitions, repetitions)):
                    for contender in report.contenders:
                        if measurement.includes(contender):
                            self._measure(measurement, contender, repetition)
        except KeyboardInterrupt:
            self._progress("interrupted: reporting the results so far")
        finally:
            for contender in report.contenders:
                self._server.drop(contender(self._templates[contender.name]).database)
            self._server.close()
        if fingerprint() != source:
            report.warnings.append(
                "the library's source changed during the run: its numbers mix several versions"
            )
        return report

    def _install(self, contender: type[Contender]) -> bool:
        try:
            versions = contender.versions()
        except importlib.metadata.PackageNotFoundError as error:
            self.report.absent[contender.name] = f"not installed: {error.name}"
            return False
        self._progress(f"installing {contender.label}")
        template = self._server.create(f"{contender.name}_template")
        self._templates[contender.name] = template
        try:
            contender(template).install()
        except Exception as error:
            self.report.absent[contender.name] = f"failed: {_brief(error)}"
            return False
        finally:
            self._server.evict(contender(template).database)
        facts = self.report.facts.setdefault("versions", {})
        assert isinstance(facts, dict)
        facts.update(versions)
        return True

    def _measure(
        self, measurement: Measurement, contender: type[Contender], repetition: int
    ) -> None:
        cell = self.report.cells.setdefault((measurement.name, contender.name), Cell())
        if cell.reason:
            return
        under_test = contender(self._server.create(contender.name, self._templates[contender.name]))
        try:
            values = measurement.run(self._bench, under_test)
        except NotOfferedError:
            cell.reason = "not offered"
        except FailedError as error:
            cell.reason = f"failed: {error}"
        except Exception as error:
            cell.reason = f"failed: {_brief(error)}"
        else:
            for key, value in values.items():
                cell.values[key].append(value)
        finally:
            self._server.drop(under_test.database)
        text = cell.reason or ", ".join(f"{key} {value:,.2f}" for key, value in values.items())
        self._progress(f"{measurement.name} #{repetition + 1} {contender.name}: {text}")


def fingerprint() -> str:
    """Return a hash of the library's source, because a working copy has no version of its own."""
    spec = importlib.util.find_spec("sqlalchemy_proletarian")
    digest = hashlib.sha256()
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def machine(server: Server) -> dict[str, object]:
    """Return the facts about the machine and the software that affect the numbers."""
    return {
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "libpq": psycopg.pq.version(),
        "psycopg_implementation": psycopg.pq.__impl__,
        "postgresql": server.facts(),
    }


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:160] if lines else type(error).__name__
