"""A trace from a request to its jobs, as a receiver of OTLP gets it.

In production the receiver is a collector or a vendor's endpoint. Here it is a small HTTP server,
which prints the spans.
"""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, RetryStrategy, migrate
from sqlalchemy_proletarian.opentelemetry import instrument

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()
received: list[Span] = []


class Receiver(BaseHTTPRequestHandler):
    """Takes spans as OTLP over HTTP."""

    def do_POST(self) -> None:
        """Keep the spans of a request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                received.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@handlers("welcome")
def welcome(email: str, session: Session) -> None:
    """Enqueue another job: it belongs to the same trace."""
    remind.enqueue(session, email)


@handlers("remind", queue="mail", retry=RetryStrategy(retries=1))
def remind(email: str, session: Session, job: Job) -> None:
    """Fail at the first attempt."""
    if job.attempts == 1:
        msg = "no connection"
        raise ConnectionError(msg)


def main() -> None:
    """Enqueue a job in a request, run it and what it enqueues, and print the trace."""
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{server.server_port}/v1/traces")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    instrument()

    request = trace.get_tracer("shop").start_as_current_span("POST /users")
    with request, Session(engine) as session, session.begin():
        welcome.enqueue(session, "ada@example.com")
    QueueWorker(engine, handlers, queues=["default", "mail"]).drain()

    provider.shutdown()  # exports what is left
    server.shutdown()
    show(b"", 0)
    print("traces:", len({span.trace_id for span in received}))


def show(parent: bytes, depth: int) -> None:
    """Print the spans below a span."""
    children = [span for span in received if span.parent_span_id == parent]
    for span in sorted(children, key=lambda span: span.start_time_unix_nano):
        values = {each.key: each.value for each in span.attributes}
        line = span.name
        if "proletarian.job.type" in values:
            line += f": {values['proletarian.job.type'].string_value}"
        if "proletarian.job.outcome" in values:
            attempt = values["proletarian.job.attempt"].int_value
            line += f", attempt {attempt}, {values['proletarian.job.outcome'].string_value}"
        if span.status.code == Status.STATUS_CODE_ERROR:
            line += f" ({span.status.message})"
        print("  " * depth + line)
        show(span.span_id, depth + 1)


if __name__ == "__main__":
    migrate.upgrade(url)
    main()
