"""docker-compose.yml and its Dockerfile against the code that they start. No Docker engine is needed."""

from __future__ import annotations

import fnmatch
import re
import shlex
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.worker import worker as worker_command
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url
from starlette.routing import Route

from ragllava.api.receiver import make_app, needed_settings
from ragllava.cli.main import COMMANDS
from ragllava.cli.receiver import receiver
from ragllava.cli.serve import serve
from ragllava.settings import Settings
from workers.app import QUEUES

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
WORKERS = sorted(name for name in OURS if SERVICES[name]["command"][0] == "celery")
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text().replace("\\\n", " ")


def example_environment() -> dict[str, str]:
    """The variables of infra/env.example, the commented ones too."""
    lines = (ROOT / "infra" / "env.example").read_text().splitlines()
    found = (re.fullmatch(r"(?:# )?([A-Z][A-Z0-9_]*)=(\S*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def queues_of(name: str) -> list[str]:
    command = SERVICES[name]["command"]
    queues: str = command[command.index("-Q") + 1]
    return queues.split(",")


def test_the_whole_system_is_there() -> None:
    stores = {"postgres", "redis", "minio", "seaweedfs"}
    assert stores | {"migrate", "ingest-worker", "answer-worker", "train-worker", "beat"} <= set(SERVICES)
    started_by_default = {name for name, service in SERVICES.items() if "profiles" not in service}
    served = [queue for name in WORKERS if name in started_by_default for queue in queues_of(name)]
    assert sorted(served) == sorted(QUEUES), "each queue has one kind of worker"


@pytest.mark.parametrize("name", OURS)
def test_our_variables_are_settings(name: str) -> None:
    environment = SERVICES[name]["environment"]
    needed = {"RAGLLAVA_API_DATABASE_URL" if name == "api" else "RAGLLAVA_DATABASE_URL"}
    if name != "receiver":
        needed |= {"RAGLLAVA_REDIS_URL", "RAGLLAVA_S3_ENDPOINT"}
    assert needed <= set(environment)
    for variable in environment:
        assert variable.removeprefix("RAGLLAVA_").lower() in Settings.model_fields, variable


def test_variables_of_the_image_are_settings() -> None:
    named = re.findall(r"(RAGLLAVA_[A-Z0-9_]+)=", DOCKERFILE)
    assert named
    for variable in named:
        assert variable.removeprefix("RAGLLAVA_").lower() in Settings.model_fields, variable


@pytest.mark.parametrize("name", WORKERS)
def test_worker_commands_are_understood_by_celery(name: str) -> None:
    program, app_option, app, command, *options = SERVICES[name]["command"]
    assert (program, app_option, app, command) == ("celery", "-A", "workers.app", "worker")
    # Celery's own parser: an option that does not exist, or a pool of another name, is refused.
    context = CLIContext(app=Celery("unused"), no_color=True, workdir=None)
    parsed = worker_command.make_context("worker", list(options), obj=context).params
    assert set(queues_of(name)) <= set(QUEUES)
    assert parsed["concurrency"] == 1
    assert parsed["hostname"].endswith(f"@{socket.gethostname()}"), "two containers of a kind need two names"
    assert not parsed["beat"], "maintenance workers tick without Celery's beat"


def test_other_commands_are_entry_points() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    others = [name for name in OURS if name not in WORKERS]
    assert "migrate" in others
    for name in others:
        program, *arguments = SERVICES[name]["command"]
        assert program in scripts
        assert arguments[0] in COMMANDS or arguments[0] == "--help"


def test_only_the_migration_knows_the_owner_of_the_tables() -> None:
    owner = make_url(SERVICES["migrate"]["environment"]["RAGLLAVA_DATABASE_OWNER_URL"])
    assert owner.username == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    for name in OURS:
        environment = SERVICES[name]["environment"]
        application = make_url(environment["RAGLLAVA_API_DATABASE_URL" if name == "api" else "RAGLLAVA_DATABASE_URL"])
        assert application.username != owner.username
        assert (application.host, application.database) == (owner.host, owner.database)
        if name != "migrate":
            assert "RAGLLAVA_DATABASE_OWNER_URL" not in environment
            assert "${POSTGRES_PASSWORD" not in str(environment), name


def test_the_receiver_gets_the_secrets_that_it_needs() -> None:
    settings = needed_settings(Settings().model_copy(update=dict.fromkeys(SECRETS, SecretStr("secret"))))
    needed = {name for name in SECRETS if getattr(settings, name) is not None}
    given = {variable.removeprefix("RAGLLAVA_").lower() for variable in SERVICES["receiver"]["environment"]}
    assert given == needed == {"database_url", "events_token"}
    assert SERVICES["receiver"]["volumes"] == []


SECRETS = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]


def test_the_api_has_a_role_of_its_own_and_no_other() -> None:
    given = SERVICES["api"]["environment"]
    assert given["RAGLLAVA_API_DATABASE_URL"] == SERVICES["migrate"]["environment"]["RAGLLAVA_API_DATABASE_URL"]
    assert make_url(given["RAGLLAVA_API_DATABASE_URL"]).username == "ragllava_api"
    assert "RAGLLAVA_DATABASE_URL" not in given
    options = serve.make_context("serve", [str(word) for word in SERVICES["api"]["command"][2:]]).params
    assert f":{options['port']}/healthz" in SERVICES["api"]["healthcheck"]["test"][-1]


def test_pictures_that_only_the_command_line_sees_are_uploaded() -> None:
    """The first command of infra/README.md mounts a folder into `cli` alone."""
    command = next(
        line for line in (ROOT / "infra" / "README.md").read_text().splitlines() if "ragllava ingest" in line
    )
    mounted, service = re.findall(r"--volume \S+?:(/[^:\s]+)\S* (\S+) ragllava ingest", command)[0]
    assert service == "cli"
    for name in WORKERS:
        assert not any(mounted in volume for volume in SERVICES[name].get("volumes", []))
    assert SERVICES["cli"]["environment"]["RAGLLAVA_UPLOAD_FILES"] == "always"


def test_what_our_services_keep_has_a_volume() -> None:
    home = re.search(r"RAGLLAVA_HOME=(\S+)", DOCKERFILE)
    assert home is not None
    assert f"install --directory --owner=ragllava --group=ragllava {home[1]}" in DOCKERFILE
    for name in WORKERS:
        assert f"state:{home[1]}" in SERVICES[name]["volumes"]


def test_only_the_s3_port_of_seaweedfs_leaves_its_container() -> None:
    """Its other ports need no key: they are on loopback, and a proxy in the same network passes S3 on."""
    options = dict(option.lstrip("-").split("=") for option in SERVICES["seaweedfs"]["command"] if "=" in option)
    assert options["ip"] == options["ip.bind"] == "127.0.0.1"
    proxy = SERVICES["seaweedfs-s3"]
    assert proxy["network_mode"] == "service:seaweedfs"
    assert proxy["profiles"] == SERVICES["seaweedfs"]["profiles"]
    content = COMPOSE["configs"]["seaweedfs-s3"]["content"]
    assert f"proxy_pass 127.0.0.1:{options['s3.port']};" in content
    [public] = re.findall(r"listen (\d+);", content)
    assert example_environment()["S3_ENDPOINT"] == f"seaweedfs:{public}"
    assert f"127.0.0.1:{options['s3.port']}/healthz" in SERVICES["seaweedfs"]["healthcheck"]["test"][-1]


def test_dependencies_exist_and_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, f"{name} needs {needed}"
            condition = how["condition"]
            if condition == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for the health of {needed}"
            else:
                assert condition == "service_completed_successfully"
                assert SERVICES[needed]["restart"] != "unless-stopped", f"{needed} never ends"


@pytest.mark.parametrize("name", WORKERS)
def test_workers_start_after_the_migration_and_get_time_to_stop(name: str) -> None:
    assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert SERVICES[name]["stop_grace_period"] == "3m"
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", WORKERS)
def test_workers_are_asked_for_their_health_by_their_own_name(name: str) -> None:
    command = SERVICES[name]["command"]
    own_name = command[command.index("-n") + 1].removesuffix("@%h")
    assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "ragllava", "status", "--worker", own_name]


def test_images_are_pinned() -> None:
    images = [service["image"] for name, service in SERVICES.items() if name not in OURS]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) >= 6
    for image in images:
        tag = image.partition(":")[2]
        assert re.search(r"\d", tag) and "latest" not in tag, image


def test_no_secret_is_written_down() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY|AUTH|TOKEN|ROOT_USER|_URL$", variable):
                assert re.search(r"\$\{[A-Z0-9_]+:\?[^}]+\}", value), f"{name}: {variable}"
        command_line = " ".join(map(str, service.get("command", [])))
        assert "${" not in command_line, f"{name}: every account of the host can read a command line"
    assert "requirepass ${REDIS_PASSWORD:?" in COMPOSE["configs"]["redis"]["content"]


def test_an_env_file_of_before_still_starts_all_profiles_but_metrics() -> None:
    required = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):\?", TEXT))
    assert "GRAFANA_PASSWORD" not in required
    assert COMPOSE["configs"]["grafana-password"]["content"] == "password=${GRAFANA_PASSWORD:-}\n"


@pytest.mark.parametrize(
    ("password", "starts"), [("", False), ("admin", False), ("CHANGE-ME", False), ("a-b_c9=$", True)]
)
def test_grafana_never_starts_with_a_default_password(password: str, starts: bool, tmp_path: Path) -> None:
    grafana = SERVICES["grafana"]
    shell, option, script = grafana["entrypoint"]
    [target] = [config["target"] for config in grafana["configs"] if config["source"] == "grafana-password"]
    assert target in script
    (tmp_path / "password").write_text(f"password={password}\n")
    (tmp_path / "run.sh").write_text('#!/bin/sh\nprintf %s "$GF_SECURITY_ADMIN_PASSWORD"\n')
    (tmp_path / "run.sh").chmod(0o755)
    here = script.replace("$$", "$").replace(target, f"{tmp_path}/password").replace("/run.sh", f"{tmp_path}/run.sh")
    run = subprocess.run([shell, option, here], capture_output=True, text=True, check=False)
    assert (run.returncode == 0, run.stdout) == (starts, password if starts else "")
    assert starts or "GRAFANA_PASSWORD" in run.stderr


def test_the_example_names_every_variable_and_no_other() -> None:
    used = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", TEXT))
    example = example_environment()
    assert used == set(example) - {"COMPOSE_PROFILES"}
    required = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):\?", TEXT))
    assert {name for name, value in example.items() if value == "CHANGE-ME"} == required - {"S3_ACCESS_KEY"}
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    assert example["COMPOSE_PROFILES"] in profiles
    assert example["S3_ENDPOINT"].split(":")[0] in SERVICES


def test_both_stores_send_their_events_to_the_receiver() -> None:
    options = [str(word) for word in SERVICES["receiver"]["command"][2:]]
    address = receiver.make_context("receiver", options).params
    assert address["host"] == "0.0.0.0"
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:9/nothing")
    app = make_app(engine, Settings(events_token=SecretStr("token")))
    [path] = [route.path for route in app.routes if isinstance(route, Route) and "POST" in (route.methods or ())]
    endpoint = f"http://receiver:{address['port']}{path}"
    assert SERVICES["minio"]["environment"]["MINIO_NOTIFY_WEBHOOK_ENDPOINT_RAGLLAVA"] == endpoint
    assert SERVICES["seaweedfs"]["environment"]["WEED_NOTIFICATION_WEBHOOK_ENDPOINT"] == endpoint
    assert f":{address['port']}/healthz" in SERVICES["receiver"]["healthcheck"]["test"][-1]


def test_addresses_are_services() -> None:
    environment = SERVICES["answer-worker"]["environment"]
    text = " ".join(environment.values())
    hosts = re.findall(r"@([a-z0-9-]+):\d+", text) + re.findall(r":-([a-z0-9-]+):\d+", text)
    assert sorted(hosts) == ["minio", "postgres", "redis"]


def test_nothing_of_the_host_is_mounted_or_published() -> None:
    for name, service in SERVICES.items():
        assert "ports" not in service, name
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"], f"{name}: {volume}"


def test_postgres_has_room_for_parallel_index_builds() -> None:
    settings = dict(
        option.split("=") for option in SERVICES["postgres"]["command"] if isinstance(option, str) and "=" in option
    )
    memory = re.fullmatch(r"(\d+)GB", settings["maintenance_work_mem"])
    shared = re.fullmatch(r"(\d+)gb", SERVICES["postgres"]["shm_size"])
    assert memory and shared and int(memory[1]) <= int(shared[1])


def test_redis_never_evicts() -> None:
    assert "maxmemory-policy noeviction" in COMPOSE["configs"]["redis"]["content"]


def test_answering_and_training_reserve_a_gpu_and_use_it() -> None:
    reserving = [name for name, service in SERVICES.items() if "deploy" in service]
    assert reserving == ["answer-worker-gpu", "train-worker-gpu"]
    for name in reserving:
        gpu, plain = SERVICES[name], SERVICES[name.removesuffix("-gpu")]
        assert gpu["profiles"] == ["gpu"]
        assert gpu["environment"] == plain["environment"] | {"RAGLLAVA_DEVICE": "cuda"}
        devices = gpu["deploy"]["resources"]["reservations"]["devices"]
        assert [device["capabilities"] for device in devices] == [["gpu"]]


def test_the_image_runs_as_an_ordinary_user() -> None:
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users and users[-1] not in ("root", "0")
    for name in OURS:
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert "user" not in SERVICES[name]


def test_the_image_copies_what_exists_and_what_the_context_holds() -> None:
    assert COMPOSE["services"]["migrate"]["build"] == {"context": ".", "dockerfile": "infra/Dockerfile"}
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in shlex.split(line)[:-1]
    ]
    assert {"ragllava", "workers", "migrations"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), f"{source} is not in the build's context"
