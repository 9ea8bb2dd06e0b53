"""Compare the queue with raw psycopg and with its peers; README.md describes the method."""

# ruff: noqa: T201 - a command prints
from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, make_url

from sqlalchemy_proletarian.embedded import embedded_postgres

from .catalogue import measurements
from .contenders import CONTENDERS, chosen
from .harness import Harness
from .measures import FULL, QUICK
from .report import show, write_json
from .tables import write_markdown


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--url", help="a server on which databases may be created; default: a new one"
    )
    parser.add_argument(
        "--only",
        default="",
        help="names of measurements and peers, separated by commas; see --list",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller measurements, as a smoke test"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values to this file")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the short tables to this file"
    )
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--repetitions", type=int, metavar="N", help="default: 5, with --quick 1")
    parser.add_argument("--list", action="store_true", help="print the names for --only")
    return parser.parse_args(arguments)


@contextmanager
def server(url: str | None) -> Iterator[URL]:
    """Yield the URL of the given server, or of a new server with durable commits."""
    if url:
        yield make_url(url).set(drivername="postgresql+psycopg")
    else:
        with embedded_postgres() as own:
            yield own


def main() -> int:
    """Run the benchmarks."""
    options = parse()
    # SIGTERM stops the workers and the server, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    scale = QUICK if options.quick else FULL
    all_measurements = measurements(scale)
    if options.list:
        print("measurements:", *(m.name for m in all_measurements))
        print("contenders:", *(c.name for c in CONTENDERS))
        return 0
    only = {name for name in options.only.split(",") if name}
    names = {contender.name for contender in CONTENDERS}
    known = {measurement.name for measurement in all_measurements}
    if unknown := only - names - known:
        print("no such measurement or contender:", *sorted(unknown), file=sys.stderr)
        return 2
    with (
        server(options.url) as url,
        tempfile.TemporaryDirectory(prefix="proletarian-bench-") as directory,
    ):
        harness = Harness(
            url, scale, Path(directory) / "marks", lambda line: print(line, file=sys.stderr)
        )
        report = harness.run(
            chosen(peers=options.peers, names=only & names),
            [m for m in all_measurements if not only & known or m.name in only],
            options.repetitions or (1 if options.quick else 5),
        )
    show(report)
    if options.json:
        write_json(report, options.json)
    if options.markdown:
        write_markdown(report, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
