"""The work of `ragllava doctor`: list versions, services, models and settings, what is wrong and what to do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import SecretStr, ValidationError
from rich.table import Table

import migrations
from ragllava.cli.options import Problem, as_time, make_table, package_versions
from ragllava.errors import RagllavaError, SettingsError
from ragllava.local.seaweed import SeaweedService
from ragllava.local.services import NOT_RUNNING, LocalServices, service_status, worker_troubles
from ragllava.models.profiles import find_model, get_profile, missing_models, missing_packages
from ragllava.settings import Settings, load_settings, origins, variable_of

_SMALLEST_FREE_BYTES = 2 * 2**30  # some thousand pictures, their embeddings and the log of the database
_SMALLEST_MEMORY_BYTES = 2 * 2**30
_TICK_GRACE_S = 15.0  # a tick may take so long
_SCHEMES_OF_SECRETS = ("postgres://", "postgresql://", "postgresql+psycopg://", "redis://", "rediss://", "unix://")
_PASSWORD_OF_USER = re.compile(r"(://[^:/?#@]*:).*@", re.DOTALL)
_PASSWORD_IN_QUERY = re.compile(r"(?i)([?&][^=&#]*(?:password|secret|token)[^=&#]*=)[^&#]*")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis; `problem` says what is wrong and what to do, None when nothing is."""

    topic: str
    name: str
    value: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The output of `ragllava doctor`."""

    findings: list[Finding]

    @property
    def problems(self) -> list[str]:
        """What is wrong, one sentence each; the exit code is 1 when there is one."""
        return [finding.problem for finding in self.findings if finding.problem is not None]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"healthy": not self.problems, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(*, deep: bool = False) -> Diagnosis:
    """Check everything. A mistake in the settings is a finding as well.

    With `deep` also compare rows with objects, embeddings with images, leases, queues and clocks. That needs the
    services; a check that is impossible because one does not answer is a finding as well.
    """
    findings = list(_versions())
    try:
        settings = load_settings()
    except SettingsError as error:
        findings.append(Finding("settings", "environment and file", "wrong", str(error)))
        try:
            settings = Settings()
        except ValidationError:
            return Diagnosis(
                findings + [Finding("settings", variable_of(name), "not read") for name in Settings.model_fields]
            )
    findings += [*_services(settings), *_home(settings), *_machine(settings)]
    findings += [*_or_problem(_models(settings), "models", "files", "missing"), *_settings(settings)]
    if deep:
        findings += _or_problem(_deep(settings), "deep", "not checked", "")
    return Diagnosis(findings)


def _or_problem(findings: Iterator[Finding], topic: str, name: str, value: str) -> Iterator[Finding]:
    """The findings of a check; when it raises, the last one has this name and value and says what is wrong."""
    try:
        yield from findings
    except RagllavaError as error:
        yield Finding(topic, name, value, str(error))


def _deep(settings: Settings) -> Iterator[Finding]:
    from ragllava.cli.progress import bar
    from ragllava.client import Client

    with Client(settings) as client, bar("deep checks") as update:
        for checked in client.system.inspect(lambda step, number: update(completed=number, note=step)):
            yield Finding("deep", checked.name, checked.value, checked.problem)


def diagnosis_lines(diagnosis: Diagnosis) -> Iterator[str | Table]:
    """The diagnosis for people: a table for each topic, the problems at the end."""
    for topic in dict.fromkeys(finding.topic for finding in diagnosis.findings):
        findings = (finding for finding in diagnosis.findings if finding.topic == topic)
        rows = ((finding.name, finding.value, "wrong" if finding.problem else "") for finding in findings)
        yield make_table(("", "", ""), rows, title=topic, title_justify="left", show_header=False)
    yield from (Problem(f"wrong: {problem}") for problem in diagnosis.problems)
    if not diagnosis.problems:
        yield "nothing is wrong"


def _versions() -> Iterator[Finding]:
    for package, version in package_versions().items():
        problem = None if version else f"{package} is not installed; run `make setup`"
        yield Finding("versions", package, version or "missing", problem)


def _services(settings: Settings) -> Iterator[Finding]:
    services = service_status(settings)
    any_embedded_runs = any(service.embedded and service.answers for service in services)
    for service in services:
        problem = None
        if service.embedded and service.address is None and service.detail != NOT_RUNNING:
            problem = service.detail  # it is not installed
        # That no embedded service runs is not a problem: `ragllava up` was not run yet.
        elif not service.answers and (service.address is not None or any_embedded_runs):
            action = "see `ragllava status` and its log, or run `ragllava up`" if service.embedded else "start it"
            problem = f"{service.title} at {service.address} does not answer ({service.detail}); {action}"
        address = f"{service.address}: " if service.address else ""
        yield Finding("services", service.title, address + service.detail, problem)
        if service.title == SeaweedService.title and service.embedded and service.answers:
            yield from _openness(LocalServices(settings).home.why_open())
    for name, problem in worker_troubles(LocalServices(settings)).items():
        yield Finding("services", f"worker {name}", "keeps dying", problem)
    if services[0].answers:
        tables = list(_or_problem(_tables(settings), "services", "tables", "unknown"))
        yield from tables
        if any(found.name == "tables" and found.problem for found in tables):  # a late tick hides nothing
            return
        yield from _or_problem(_faults(settings), "faults", "faults", "unknown")
        yield from _or_problem(_held_removals(settings), "archives", "removals", "unknown")


def _openness(reason: str | None) -> Iterator[Finding]:
    """Whether other accounts of the machine can connect to the inner ports of SeaweedFS.

    Open ports are not reported as a problem: many systems do not allow to close them.
    """
    if reason is not None:
        value = f"other accounts can connect to them: {reason}" if reason else "closed to other accounts"
        yield Finding("services", f"ports of {SeaweedService.title}", value)


def _tables(settings: Settings) -> Iterator[Finding]:
    found = migrations.standing(settings.require_database())
    yield Finding("services", "tables", f"revision {found.revision}" if found.revision else "none", found.problem)
    if found.problem is None:
        yield _last_tick(settings)


def _last_tick(settings: Settings) -> Finding:
    """Without ticks, work that was lost or is due waits for ever, and nothing else shows it."""
    from ragllava.client import Client

    with Client(settings, name="ragllava-doctor", pool_size=1) as client:
        age_s = client.system.last_tick_age_s()
        has_workers = bool(client.system.workers())
    latest_s = 3 * settings.tick_s + _TICK_GRACE_S
    problem = None
    if age_s is None and has_workers:
        problem = "no tick has ended yet, but workers run: start the maintenance worker (`ragllava up`)"
    elif age_s is not None and abs(age_s) > latest_s:
        when = f"{age_s:,.0f} s ago" if age_s > 0 else "in the future: the clock of the database was set back"
        problem = f"the last tick ended {when}; check that the maintenance worker runs (`ragllava status`, its log)"
    return Finding("services", "last tick", "none yet" if age_s is None else f"{age_s:.0f} s ago", problem)


def _faults(settings: Settings) -> Iterator[Finding]:
    """What does not succeed and is postponed, so that everything else continues."""
    from ragllava.client import Client

    with Client(settings, name="ragllava-doctor", pool_size=1) as client:
        for fault in client.system.faults():
            tries = f"{fault.attempts} tries, next {as_time(fault.next_try_at)}"
            yield Finding("faults", fault.title, tries, f"{fault.title} does not succeed: {fault.reason}")


def _held_removals(settings: Settings) -> Iterator[Finding]:
    """Folders and buckets that lost so many pictures at once that these stay until somebody is asked."""
    from ragllava.client import Client

    if migrations.current(settings.require_database()) is None:
        return
    with Client(settings, name="ragllava-doctor", pool_size=1) as client:
        for held in client.archives.held_removals():
            yield Finding("archives", held.archive, f"{held.gone:,} of {held.pictures:,} pictures gone", held.problem)


def _home(settings: Settings) -> Iterator[Finding]:
    existing = settings.existing_home
    problem = f"{existing} cannot be written; set RAGLLAVA_HOME to a folder of yours"
    yield Finding("disk", "home", str(settings.home), None if os.access(existing, os.W_OK) else problem)
    free_bytes = shutil.disk_usage(existing).free
    problem = f"only {_gib(free_bytes)} are free at {existing}; free some, or set RAGLLAVA_HOME to another disk"
    yield Finding("disk", "free", _gib(free_bytes), problem if free_bytes < _SMALLEST_FREE_BYTES else None)


def _machine(settings: Settings) -> Iterator[Finding]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("machine", "cores", str(cores))
    memory = psutil.virtual_memory()
    problem = f"only {_gib(memory.available)} of memory are available; the workers of profile mini need 2 GiB"
    value = f"{_gib(memory.available)} available of {_gib(memory.total)}"
    yield Finding("machine", "memory", value, problem if memory.available < _SMALLEST_MEMORY_BYTES else None)
    yield from _or_problem(_decoders(), "machine", "decoders", "do not start")
    yield from _or_problem(_device(settings), "machine", "device", settings.device)


def _decoders() -> Iterator[Finding]:
    """What confines the processes that decode pictures here."""
    from ragllava.imaging.sandbox import active_protections

    active = active_protections()
    value = f"confined by {' and '.join([*active, 'limits of memory and time'])}"
    missing = [name for name in ("Landlock", "seccomp") if name not in active]
    yield Finding("machine", "decoders", value + (f"; without {' and '.join(missing)}" if missing else ""))


def _device(settings: Settings) -> Iterator[Finding]:
    if missing_packages():
        yield Finding("machine", "device", f"{settings.device}: the model libraries are not installed")
        return
    from ragllava.models.device import plan_device

    plan = plan_device(settings)
    dtype = str(plan.dtype).removeprefix("torch.")
    yield Finding("machine", "device", f"{plan.device}, {dtype} ({plan.reason})")


def _models(settings: Settings) -> Iterator[Finding]:
    profile = get_profile(settings)
    yield Finding("models", "profile", profile.name)
    if packages := missing_packages():  # a client needs none of them
        yield Finding("models", "libraries", f"not installed, for a client only: {', '.join(packages)}")
        return
    missing = missing_models(profile, settings)
    for role, reference in (("retriever", profile.retriever.reference), ("MLLM", profile.mllm)):
        yield Finding("models", role, f"{reference}{', missing' if reference in missing else ''}")
    for reference in missing:
        find_model(reference, profile, settings)
    yield from _or_problem(_backend(settings), "models", "backend", str(settings.vllm_url))


def _backend(settings: Settings) -> Iterator[Finding]:
    """Where reranker and generator compute; of an endpoint, whether its scores agree with those of the weights."""
    if settings.vllm_url is None:
        yield Finding("models", "backend", "in the workers' processes")
        return
    from ragllava.models.bundle import ModelBundle

    name, parity = ModelBundle(settings, serving=True).parity()
    yield Finding("models", "backend", f"{settings.vllm_url} serves {name}: {parity}")


def _settings(settings: Settings) -> Iterator[Finding]:
    for row in shown_settings(settings):
        yield Finding("settings", row["variable"], f"{row['value']} ({row['from']})")


def shown_settings(settings: Settings) -> list[dict[str, str]]:
    """Every setting with its value for people and where that comes from."""
    origin = origins(settings)
    return [
        {"setting": name, "variable": variable_of(name), "value": masked(value), "from": origin[name]}
        for name, value in settings
    ]


def masked(value: object) -> str:
    """A setting's value for people: a URL without its passwords, another secret as asterisks."""
    if value is None:
        return "not set"
    is_secret = isinstance(value, SecretStr)
    plain = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    if is_secret and not plain.startswith(_SCHEMES_OF_SECRETS):
        return "***"
    # Up to the last @: a password may contain one, and whatever else has to be quoted and was not.
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD_OF_USER.sub(r"\1***@", plain))


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
