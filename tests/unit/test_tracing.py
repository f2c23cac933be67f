"""Traces are off unless a variable asks for them, and then nothing of OpenTelemetry is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ragllava import tracing
from ragllava.errors import SettingsError

_OFF = """
import sys
from ragllava import tracing

tracing.begin("test")
with tracing.request("GET /", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"), tracing.stage("retrieve"):
    assert tracing.context() is None
with tracing.continued("x", "answer shard", job=1):
    assert tracing.context() is None
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""


def test_without_the_variable_nothing_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", _OFF], env=environment, check=True, timeout=120)


def test_the_variable_without_the_packages_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"pip install 'ragllava\[otel\]'"):
        tracing.begin("test")
    assert tracing.context() is None
