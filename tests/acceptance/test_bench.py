from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import URL, create_engine, inspect

from .programs import PROLETARIAN, plain, run


def test_bench_prints_results_and_drops_its_schema(empty_database: URL, tmp_path: Path):
    """``proletarian bench`` prints the results and the floor, and writes them as JSON."""
    file = tmp_path / "bench.json"
    options = ["--url", plain(empty_database), "--size", "200", "--repetitions", "1"]
    result = run([*PROLETARIAN, "bench", *options, "--json", str(file)])
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80

    rows = json.loads(file.read_text())["rows"]
    assert all(row["value"] > 0 for row in rows)
    assert {row["unit"] for row in rows} == {"jobs/s", "ms"}
    assert sum(row["floor"] is not None for row in rows) == 4
    assert all(row["name"] in result.stdout for row in rows)

    engine = create_engine(empty_database)
    assert "proletarian_bench" not in inspect(engine).get_schema_names()
    engine.dispose()
