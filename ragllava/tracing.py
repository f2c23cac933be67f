"""Traces for OpenTelemetry (the extra `otel`): one trace follows a question from its request to its answer.

A request begins a trace. Its job keeps where it came from, and each shard of the job goes on there in its worker.
Nothing is traced, and no package of OpenTelemetry imported, unless its own variable OTEL_EXPORTER_OTLP_ENDPOINT says
where to send traces. The names of spans and attributes are here and in the calls alone; none has a question, an
answer, a caption or the name of a picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ragllava.errors import SettingsError

_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PARENT = "traceparent"  # of the W3C
_ATTRIBUTES = "ragllava."

_provider: Any = None  # of this process; None: nothing is traced


def begin(service: str) -> None:
    """Trace this process from now on if a variable asks for it, under the name of a service unless OTEL_SERVICE_NAME
    gives one. Call it after a fork. Raises SettingsError when the packages are not installed."""
    global _provider  # noqa: PLW0603
    if _provider is not None or not any(os.environ.get(name) for name in _VARIABLES):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, but OpenTelemetry is not installed: run "
            "`pip install 'ragllava[otel]'`, or unset the variable"
        ) from error
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    _provider = TracerProvider(resource=Resource.create(named))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # sends from a thread of its own


def end() -> None:
    """Send what was not sent yet, and trace nothing any more."""
    global _provider  # noqa: PLW0603
    if _provider is not None:
        _provider.shutdown()
        _provider = None


def context() -> str | None:
    """Where this thread is in a trace, as a W3C `traceparent`; None outside of one."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_PARENT)


@contextmanager
def request(name: str, traceparent: str | None) -> Iterator[None]:
    """A span for a request: in the trace that the caller names, or in a new one."""
    if _provider is None:
        yield
        return
    with _attached(traceparent), _span(name, {}):
        yield


@contextmanager
def continued(traceparent: str | None, name: str, **facts: str | int) -> Iterator[None]:
    """A span of the trace that began elsewhere; without one, nothing in this block is traced."""
    if _provider is None:
        yield
        return
    with _attached(traceparent):
        if traceparent is None:
            yield
        else:
            with _span(name, facts):
                yield


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A span inside of another one; outside, nothing."""
    if context() is None:
        yield
        return
    with _span(name, {}):
        yield


@contextmanager
def _attached(traceparent: str | None) -> Iterator[None]:
    """In this block, the thread is where the trace context says, and outside of any trace for None."""
    from opentelemetry.context import Context, attach, detach
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {_PARENT: traceparent} if traceparent else {}
    token = attach(TraceContextTextMapPropagator().extract(carrier, Context()))
    try:
        yield
    finally:
        detach(token)


@contextmanager
def _span(name: str, facts: dict[str, str | int]) -> Iterator[None]:
    """A failure is noted by its type: its message may name a picture."""
    from opentelemetry.trace import Status, StatusCode

    attributes = {f"{_ATTRIBUTES}{key}": value for key, value in facts.items()}
    tracer = _provider.get_tracer("ragllava")
    with tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
