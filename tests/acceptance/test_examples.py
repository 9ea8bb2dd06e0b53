from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from sqlalchemy_proletarian import migrate

from .programs import EXAMPLES, PROLETARIAN, plain, run, run_tests, started

OUTPUT = {
    "clojure_service": [
        '["^ ","~:to","ada@example.com","~:at","~m1893456000000"]',
        "from Clojure: ada@example.com owes 9.90, kind urgent",
        "refused: job_type must be written as a keyword",
    ],
    "batch_handlers": [
        "1000 jobs ran",
        "entries: 999",
        'failed: {"title":""}: sqlalchemy_proletarian.retry.Discard: no title',
    ],
    "control": [
        "while paused: 0 runs",
        "mail was paused by Ada: the mail server is down",
        "newsletter to bob@example.com",
        "resumed: 1 runs",
        "retried: 2",
        "rescheduled",
        "discarded",
        "invoice 1: 1.08",
        "invoice 2: 1.08",
        "invoice 3: 1.08",
        "default: invoice: 0 due, 3 succeeded, 3 failed",
        "mail: newsletter: 1 due, 1 succeeded, 0 failed",
        "pruned: 4",
        "the worker prunes in the background",
    ],
    "custom_tables": ["Ada owes 7", "archived for customer 1: success"],
    "dashboard_app": [
        "a visitor: 403",
        "the address is hidden: True",
        "ada: cancel, 1 of 1",
    ],
    "fastapi_app": ["Welcome, ada@example.com!", "ada@example.com was welcomed: True"],
    "first_program": ["Welcome, ada@example.com!"],
    "health_checks": [
        "running: 2 of 2 threads are alive",
        "ready: True, problems: []",
        'proletarian_jobs_total{job_type="send-mail",outcome="success"} 2.0',
        'proletarian_jobs_total{job_type="send-mail",outcome="retried"} 2.0',
        'proletarian_jobs_total{job_type="send-mail",outcome="failure"} 1.0',
        'shop_mails_total{kind="welcome"} 1.0',
        "afterwards: the worker has stopped",
    ],
    "job_classes": [
        "invoice for Ada",
        "2 labels for 12 St James's Square",
        "Ada was invoiced: True",
        "print-label: success, 12 St James's Square",
        "send-invoice: success, 1",
    ],
    "limits": [
        "export: at most 2 at a time",
        "customer 0: at most 1 at a time",
        "customer 1: at most 1 at a time",
        "there is a second between the first mail and the sixth: True",
    ],
    "logging_json": [
        '"event": "job-finished"',
        '"job_type": "greet", "attempt": 1, "headers": {"request": "r-1"}, "queue": "default"',
        '"outcome": "success"',
    ],
    "logging_setup": [" success greet ", " failure greet "],
    "logging_structlog": [
        '"event": "greeted", "job_id": "',
        '{"event": "job-finished", "level": "info", "timestamp": "',
        '"job_type": "greet", "attempt": 1, "queue": "default", "wait": ',
    ],
    "many_schemas": ["Hello, tenant_3!", "Hello, tenant_7!", "jobs: 3", "jobs: 0"],
    "many_waiting_jobs": [
        "500 jobs waited 1 second each and finished",
        "together they took less than 30 seconds",
    ],
    "middleware": [
        "acme: bill raised",
        "42 billed to acme, as acme",
        "acme: bill returned",
    ],
    "on_changes": ["confirm order 1", "the order is paid", "refund order 1"],
    "recurring_jobs": [
        "report on sales (nightly-report@2026-10-25T00:30:00Z)",
        "report on sales (nightly-report@2026-11-02T01:30:00Z)",
        "report on invoices (report-for-ada@2026-11-02T07:00:00Z)",
        "clean-up: next at 02 November 13:00",
        "nightly-report: next at 03 November 02:30",
    ],
    "results": [
        "computing May for acme",
        "job-finished: request r-1, attempt 1",
        "May: 42, after 1 attempts",
        "retrying: request r-2, attempt 1",
        "not-retrying: request r-2, attempt 2",
        "failure: ValueError: no such month",
        "'request': 'r-1'",
        'success, {"month":"May","amount":42}',
        "failure, None",
    ],
    "retries": [
        "always-fails null: failure after 4",
        "attempt 2 knows: ConnectionError: no answer",
        'flaky "partner": success after 2',
        'flaky "broken": failure after 1',
        'depends "quota": failure after 2',
        'depends "broken": failure after 1',
        'decides "hopeless": failure after 1',
        'decides "again": success after 2',
        'decides "not-today": waits, 0 attempts',
    ],
    "rollback": ["queued: 2", "ran: committed, outside the savepoint"],
    "several_databases": [
        "invoice for Grace",
        "eu due: 0 succeeded: 2",
        "us due: 0 succeeded: 1",
    ],
    "sqladmin_app": ["the list: 200 True", "a job: 200 True"],
    "tracing": [
        "POST /users",
        "  send default: welcome",
        "    process default: welcome, attempt 1, success",
        "      send mail: remind",
        "        process mail: remind, attempt 1, retried (ConnectionError: no connection)",
        "        process mail: remind, attempt 2, success",
        "traces: 1",
    ],
    "sentry_reports": [
        "TimeoutError: the bank does not answer {'job_type': 'charge', 'queue': 'default'",
        "attempt 2",
    ],
    "typed_payloads": [
        "refused: payload['lines'][0]['amount'] is a decimal.Decimal",
        "9.90 due on Tuesday",
        "reminder for Wednesday",
        "hello Ada",
    ],
    "unique_jobs": [
        "page 2 changes while it is indexed, a new job: True",
        "indexed: [1, 2, 2]",
        "postponed: True, the same job: True",
        'its payload: "Ada!"',
        "refused: remind-ada, the job is known: True",
    ],
}
"""Lines that each example prints."""

TESTED_SEPARATELY = {"shop_jobs", "test_your_code", "worker_process"}


@pytest.mark.parametrize("name", sorted(OUTPUT))
def test_each_example_prints_its_results(name: str, empty_database: URL, tmp_path: Path):
    """Each example runs on an empty database."""
    log = str(tmp_path / "jobs.log")
    result = run([sys.executable, str(EXAMPLES / f"{name}.py")], url=empty_database, JOBS_LOG=log)
    assert result.returncode == 0, result.stderr
    assert [line for line in OUTPUT[name] if line not in result.stdout] == []


def test_every_example_has_a_test():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == OUTPUT.keys() | TESTED_SEPARATELY


def test_the_example_of_tests_passes(empty_database: URL, tmp_path: Path):
    """The file runs with pytest and the plugin, twice, because it leaves nothing in its tables."""
    shutil.copy(EXAMPLES / "test_your_code.py", tmp_path)
    for _ in range(2):
        result = run_tests(tmp_path, empty_database)
        assert result.returncode == 0, result.stdout
        assert "5 passed" in result.stdout


def test_the_worker_process_example_exits_on_sigterm(empty_database: URL):
    """The process exits with code 0, even if it receives the signal while it starts."""
    program = [sys.executable, str(EXAMPLES / "worker_process.py")]
    with started(program, DATABASE_URL=plain(empty_database)) as (process, wait_for):
        wait_for("worker-starting")
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=20)[0]
    assert process.returncode == 0, output
    assert "worker-stopped" in output


def test_the_jobs_of_the_shop_run_with_the_command(empty_database: URL):
    """``proletarian worker`` runs what the example has enqueued, the critical queue first."""
    url = plain(empty_database)
    enqueued = run([sys.executable, str(EXAMPLES / "shop_jobs.py")], PROLETARIAN_URL=url)
    assert enqueued.returncode == 0, enqueued.stderr
    command = [*PROLETARIAN, "worker", "shop_jobs:handlers", "--queues", "critical,default"]
    done = run([*command, "--drain"], PROLETARIAN_URL=url, PYTHONPATH=str(EXAMPLES))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *(f"charged order {order}" for order in (1, 2, 3)),
        *(f"receipt for order {order} to ada@example.com" for order in (1, 2, 3)),
    ]


def test_the_command_of_the_readme_runs_the_first_program(empty_database: URL):
    url = plain(empty_database)
    migrate.upgrade(empty_database)
    command = [*PROLETARIAN, "worker", "first_program:handlers", "--url", url, "--drain"]
    done = run(command, url=empty_database, PYTHONPATH=str(EXAMPLES))
    assert done.returncode == 0, done.stderr
    assert "handlers   welcome (first_program:handlers)" in done.stderr
