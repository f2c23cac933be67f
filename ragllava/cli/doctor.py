"""What stands behind `ragllava doctor`: what is there, what is wrong, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click
from pydantic import SecretStr, ValidationError
from sqlalchemy.engine import make_url

import migrations
from ragllava.cli.options import print_problem, print_table
from ragllava.errors import RagllavaError, SettingsError
from ragllava.local.services import service_status
from ragllava.models.profiles import find_model, get_profile, missing_models, retriever_reference
from ragllava.settings import Settings

_PACKAGES = (
    "ragllava",
    "celery",
    "redis",
    "SQLAlchemy",
    "psycopg",
    "pgvector",
    "torch",
    "transformers",
    "open_clip_torch",
    "minio",
    "pillow",
)
_SMALLEST_FREE_BYTES = 2 * 2**30  # some thousand pictures, their embeddings and the log of the database
_SMALLEST_MEMORY_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis; `problem` says what is wrong and what to do, None when all is well."""

    topic: str
    name: str
    value: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that `ragllava doctor` found."""

    findings: list[Finding]

    @property
    def problems(self) -> list[str]:
        """What is wrong, one sentence each; the exit code is 1 when there is any."""
        return [finding.problem for finding in self.findings if finding.problem is not None]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"healthy": not self.problems, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(load: Callable[[], Settings]) -> Diagnosis:
    """Look at everything. `load` gives the settings; a mistake in them is a finding like any other."""
    findings = list(_versions())
    try:
        settings = load()
    except SettingsError as error:
        findings.append(Finding("settings", "environment", "wrong", str(error)))
        try:
            settings = Settings()
        except ValidationError:
            known = [Finding("settings", _variable(name), "not read") for name in Settings.model_fields]
            return Diagnosis(findings + known)
    checks = (_services, _home, _machine, _models, _settings)
    return Diagnosis(findings + [finding for check in checks for finding in check(settings)])


def diagnose_deep(shallow: Diagnosis, load: Callable[[], Settings]) -> Diagnosis:
    """The same and what lies deeper: rows against objects, vectors against images, leases, queues, clocks.

    Needs the services; what cannot be looked at because one is away is a finding as well.
    """
    try:
        settings = load()
        return Diagnosis(shallow.findings + list(_deep(settings)))
    except RagllavaError as error:
        return Diagnosis([*shallow.findings, Finding("deep", "not looked at", "", str(error))])


def _deep(settings: Settings) -> Iterator[Finding]:
    from rich.console import Console

    from ragllava.cli.progress import bars
    from ragllava.client import Client

    with Client(settings) as client, bars(Console(stderr=True)) as progress:
        task = progress.add_task("deep checks", total=None, note="")

        def show(step: str, number: int) -> None:
            progress.update(task, completed=number, note=step)

        for checked in client.system.inspect(show):
            yield Finding("deep", checked.name, checked.value, checked.problem)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The diagnosis for people: a table for each topic, the problems last."""
    from rich.table import Table

    for topic in dict.fromkeys(finding.topic for finding in diagnosis.findings):
        table = Table(title=topic, title_justify="left", show_header=False)
        for finding in diagnosis.findings:
            if finding.topic == topic:
                table.add_row(finding.name, finding.value, "wrong" if finding.problem else "")
        print_table(table)
    for problem in diagnosis.problems:
        print_problem(f"wrong: {problem}")
    if not diagnosis.problems:
        click.echo("nothing is wrong")


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "python", platform.python_version())
    for package in _PACKAGES:
        try:
            yield Finding("versions", package, version(package))
        except PackageNotFoundError:
            yield Finding("versions", package, "missing", f"{package} is not installed; run `make setup`")


def _services(settings: Settings) -> Iterator[Finding]:
    found = service_status(settings)
    some_embedded_run = any(service.embedded and service.answers for service in found)
    for service in found:
        problem = None
        # Embedded services that are all down are no fault: nobody said `ragllava up` yet.
        if not service.answers and (service.address is not None or some_embedded_run or not service.embedded):
            action = "see `ragllava status` and its log, or say `ragllava up`" if service.embedded else "start it"
            problem = f"{service.title} at {service.address} does not answer ({service.detail}); {action}"
        where = f"{service.address}: " if service.address else ""
        yield Finding("services", service.title, where + service.detail, problem)
    if found[0].answers:
        yield _tables(settings)


def _tables(settings: Settings) -> Finding:
    try:
        revision = migrations.current(settings.require_database())
    except RagllavaError as error:
        return Finding("services", "tables", "unknown", str(error))
    if revision is None:
        return Finding("services", "tables", "none", "the database has no tables yet; run `ragllava migrate`")
    return Finding("services", "tables", f"revision {revision}")


def _home(settings: Settings) -> Iterator[Finding]:
    existing = next(path for path in (settings.home.absolute(), *settings.home.absolute().parents) if path.exists())
    problem = None
    if not os.access(existing, os.W_OK):
        problem = f"{existing} cannot be written; set RAGLLAVA_HOME to a folder of yours"
    yield Finding("disk", "home", str(settings.home), problem)
    free_bytes = shutil.disk_usage(existing).free
    problem = None
    if free_bytes < _SMALLEST_FREE_BYTES:
        problem = f"only {_gib(free_bytes)} are free at {existing}; free some, or set RAGLLAVA_HOME to another disk"
    yield Finding("disk", "free", _gib(free_bytes), problem)


def _machine(settings: Settings) -> Iterator[Finding]:
    import psutil

    yield Finding(
        "machine", "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    )
    memory = psutil.virtual_memory()
    problem = None
    if memory.available < _SMALLEST_MEMORY_BYTES:
        problem = f"only {_gib(memory.available)} of memory are available; the workers of profile mini need 2 GiB"
    yield Finding("machine", "memory", f"{_gib(memory.available)} available of {_gib(memory.total)}", problem)
    from ragllava.models.device import plan_device

    try:
        plan = plan_device(settings)
    except SettingsError as error:
        yield Finding("machine", "device", settings.device, str(error))
        return
    dtype = str(plan.dtype).removeprefix("torch.")
    yield Finding("machine", "device", f"{plan.device}, {dtype} ({plan.reason})")


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        profile = get_profile(settings)
        yield Finding("models", "profile", profile.name)
        missing = missing_models(profile, settings)
        for role, reference in (("retriever", retriever_reference(profile)), ("MLLM", profile.mllm)):
            yield Finding("models", role, f"{reference}{', missing' if reference in missing else ''}")
        for reference in missing:
            find_model(reference, profile, settings)
    except RagllavaError as error:
        yield Finding("models", "files", "missing", str(error))
        return
    yield _backend(settings)


def _backend(settings: Settings) -> Finding:
    """Where reranker and generator compute; of an endpoint, whether it computes what the weights would."""
    if settings.vllm_url is None:
        return Finding("models", "backend", "in the workers' processes")
    from ragllava.models.bundle import ModelBundle

    try:
        name, parity = ModelBundle(settings, serving=True).parity()
    except RagllavaError as error:
        return Finding("models", "backend", settings.vllm_url, str(error))
    return Finding("models", "backend", f"{settings.vllm_url} serves {name}: {parity}")


def _settings(settings: Settings) -> Iterator[Finding]:
    for name, value in settings:
        origin = "environment" if _variable(name) in os.environ else "default"
        if name in settings.model_fields_set and origin == "default":
            origin = "embedded service"
        yield Finding("settings", _variable(name), f"{masked(value)} ({origin})")


def masked(value: object) -> str:
    """A setting's value for people: of a URL everything but the password, of another secret nothing."""
    if value is None:
        return "not set"
    if not isinstance(value, SecretStr):
        return str(value)
    plain = value.get_secret_value()
    return make_url(plain).render_as_string(hide_password=True) if "://" in plain else "***"


def _variable(name: str) -> str:
    return f"RAGLLAVA_{name.upper()}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
