"""The Helm chart against helm, the schemas of Kubernetes, and the code that its pods start. No cluster is needed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.worker import worker as worker_command
from jsonschema import ValidationError

from ragllava.cli.main import COMMANDS
from ragllava.settings import Settings, is_loopback
from ragllava.vital_signs import QUESTIONS
from tests.support.chart import CHART, VALUE_SETS, Manifest, of_kind, rendered, run_helm, validate
from tests.support.pages import ROOT, all_pages
from workers.app import QUEUES

WORKERS = {"maintenance": "maint", "ingest": "ingest", "answer": "query", "train": "train"}
EVERY = {
    "Deployment", "Job", "Service", "Ingress", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy",
    "ScaledObject", "TriggerAuthentication", "PodMonitor", "PrometheusRule",
}  # fmt: skip
PROBES = ("startup", "readiness", "liveness")
SECRETS = {f"RAGLLAVA_{name.upper()}" for name, field in Settings.model_fields.items() if "Secret" in str(field)}
IN_SECRET = SECRETS | {"RAGLLAVA_S3_ACCESS_KEY"}
MINIMAL = ("--values", CHART / "ci" / "minimal.yaml")


def pods(value_set: str) -> dict[str, Manifest]:
    """The specification of the pods of each workload, by its name."""
    workloads = of_kind(value_set, "Deployment") | of_kind(value_set, "Job")
    return {
        name.removeprefix("archive-ragllava-"): item["spec"]["template"]["spec"] for name, item in workloads.items()
    }


def container(pod: Manifest) -> Manifest:
    [only] = pod["containers"]
    assert isinstance(only, dict)
    return only


def variables(pod: Manifest) -> dict[str, Any]:
    """Each setting with its value, or the key of the Secret: of variables, and of files if there are any."""
    given = {
        entry["name"]: entry["value"] if "value" in entry else (entry["valueFrom"]["secretKeyRef"]["key"],)
        for entry in container(pod)["env"]
    }
    return given | {item["path"]: (item["key"],) for item in files_of_secret(pod)}


def files_of_secret(pod: Manifest) -> list[Manifest]:
    """The files of the folder that RAGLLAVA_SETTINGS_DIR names; none without it."""
    folders = [entry["value"] for entry in container(pod)["env"] if entry["name"] == "RAGLLAVA_SETTINGS_DIR"]
    mounts = [mount for mount in container(pod)["volumeMounts"] if mount["mountPath"] in folders]
    assert len(mounts) == len(folders) and all(mount["readOnly"] for mount in mounts)
    names = {mount["name"] for mount in mounts}
    secrets = [volume["secret"] for volume in pod["volumes"] if volume["name"] in names]
    assert all(secret["defaultMode"] == 0o440 for secret in secrets)
    return [item for secret in secrets for item in secret["items"]]


def test_helm_accepts_each_value_set_strictly() -> None:
    assert len(VALUE_SETS) == 4
    for name in VALUE_SETS:
        run = run_helm("lint", "--strict", CHART, "--values", CHART / "ci" / f"{name}.yaml")
        assert run.returncode == 0, f"{name}: {run.stdout}{run.stderr}"


def test_every_manifest_of_every_value_set_is_valid() -> None:
    seen: dict[str, Manifest] = {json.dumps(item): item for name in VALUE_SETS for item in rendered(name)}
    for item in seen.values():
        validate(item)  # raises for a kind without a schema, too
    assert {item["kind"] for item in seen.values()} == EVERY


def test_a_manifest_with_a_mistake_is_not_valid() -> None:
    """The test above would pass if nothing was looked at."""
    mistakes = {"Deployment": "replica", "ScaledObject": "maxReplicas", "PodMonitor": "port", "PrometheusRule": "group"}
    for kind, mistake in mistakes.items():
        item = next(iter(of_kind("all", kind).values()))
        with pytest.raises(Exception, match=mistake) as refused:
            validate(item | {"spec": item["spec"] | {mistake: 1}})
        assert isinstance(refused.value, ValidationError) or "ValidationError" in type(refused.value).__name__
    with pytest.raises(LookupError, match="ServiceMonitor"):
        validate({"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor"})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("existingSecret=", "existingSecret"),
        ("settings.RAGLLAVA_S3_ENDPOINT=", "RAGLLAVA_S3_ENDPOINT"),
        ("settings.RAGLLAVA_DATABASE_URL=postgresql://user:password@host/name", "RAGLLAVA_DATABASE_URL"),
        ("image.tag=latest", "tag"),
        ("workers.answer.replica=2", "replica"),
        ("workers.answer.terminationGracePeriodSeconds=5", "terminationGracePeriodSeconds"),
        ("extraSecretKeys={RAGLLAVA_DATABASE_OWNER_URL}", "extraSecretKeys"),
        ("serve.ingress.enabled=true", "ingress"),
        ("serve.trustedProxies={ingress-nginx}", "trustedProxies"),
        ("tracesEndpoint=collector:4318", "tracesEndpoint"),
        (
            "keda.enabled=true,workers.answer.scaling.min=3,workers.answer.scaling.max=2",
            "above scaling.max",
        ),
    ],
)
def test_a_wrong_value_is_refused(wrong: str, says: str) -> None:
    run = run_helm("template", "archive", CHART, *MINIMAL, "--set", wrong)
    assert run.returncode != 0 and says in run.stderr


def test_the_values_on_the_pages_are_accepted(tmp_path: Path) -> None:
    blocks = [block for page in all_pages() for block in page.blocks("yaml")]
    assert blocks
    for block in blocks:
        (tmp_path / "values.yaml").write_text(block)
        run = run_helm("template", "archive", CHART, "--values", tmp_path / "values.yaml")
        assert run.returncode == 0, run.stderr


def test_no_secret_is_a_plain_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = schema["$defs"]["settings"]["propertyNames"]
    refused, but = names["not"]["pattern"], names["not"]["not"]["enum"]
    every = {f"RAGLLAVA_{name.upper()}" for name in Settings.model_fields}
    keys = {"RAGLLAVA_S3_ACCESS_KEY", "RAGLLAVA_BACKUP_S3_ACCESS_KEY"}
    assert {name for name in every if re.search(refused, name) and name not in but} == SECRETS | keys


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_pods_get_settings_and_no_more_secrets_than_they_need(value_set: str) -> None:
    database = {"migrate": "RAGLLAVA_DATABASE_OWNER_URL", "serve": "RAGLLAVA_API_DATABASE_URL"}
    for name, pod in pods(value_set).items():
        given = variables(pod)
        for variable, value in given.items():
            own = variable in ("HOME", "FORWARDED_ALLOW_IPS", "OTEL_EXPORTER_OTLP_ENDPOINT")
            assert own or variable.removeprefix("RAGLLAVA_").lower() in Settings.model_fields, variable
            assert (variable in IN_SECRET) == isinstance(value, tuple), variable
        databases = {variable for variable in given if variable.endswith("DATABASE_URL") or "OWNER" in variable}
        if name != "migrate":
            assert databases == {database.get(name, "RAGLLAVA_DATABASE_URL")}
        else:
            assert database["migrate"] in databases
            assert ("RAGLLAVA_SCALE_DATABASE_URL" in databases) == bool(of_kind(value_set, "ScaledObject"))
            assert "RAGLLAVA_REDIS_URL" not in given


def test_server_and_workers_send_traces_where_a_value_says() -> None:
    for value_set, endpoint in (("all", "http://collector.monitoring:4318"), ("gpu", None)):
        for name, pod in pods(value_set).items():
            expected = None if name == "migrate" else endpoint
            assert variables(pod).get("OTEL_EXPORTER_OTLP_ENDPOINT") == expected, (value_set, name)


def test_secrets_are_variables_or_files_and_never_both() -> None:
    for value_set, are_files in (("all", True), ("gpu", False)):
        for name, pod in pods(value_set).items():
            by_variable = [entry["name"] for entry in container(pod)["env"] if "valueFrom" in entry]
            by_file = [item["path"] for item in files_of_secret(pod)]
            assert (bool(by_file), bool(by_variable)) == (are_files, not are_files), (value_set, name)


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_pods_can_do_little_and_get_bounds(value_set: str) -> None:
    for name, pod in pods(value_set).items():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        own = container(pod)
        security = own["securityContext"]
        assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False
        assert {"cpu", "memory"} <= set(own["resources"]["limits"]) & set(own["resources"]["requests"]), name
        # What the image leaves for writing is a volume, and each of these has a bound.
        written = {mount["mountPath"] for mount in own["volumeMounts"] if not mount.get("readOnly")}
        assert {"/var/lib/ragllava", "/tmp"} <= written
        assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


def test_the_image_of_the_pods_runs_as_their_user() -> None:
    assert re.search(r"^USER 10001$", (ROOT / "infra" / "Dockerfile").read_text(), re.MULTILINE)


def test_workers_are_the_ones_that_the_code_knows() -> None:
    assert set(WORKERS.values()) == set(QUEUES)
    for name, queue in WORKERS.items():
        pod = pods("minimal")[name]
        program, _option, app, command, *options = container(pod)["command"]
        assert (program, app, command) == ("celery", "workers.app", "worker")
        context = CLIContext(app=Celery("unused"), no_color=True, workdir=None)
        parsed = worker_command.make_context("worker", list(options), obj=context).params
        assert (parsed["queues"], parsed["concurrency"]) == ([queue], 1)
        assert ("solo" in str(parsed["pool"])) == (name == "maintenance")
        probed = {
            kind: container(pod)[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "readiness", "liveness")
        }
        own = options[options.index("-n") + 1].removesuffix("@%h")
        questions = dict(zip(probed, QUESTIONS, strict=True))
        assert probed == {kind: ["ragllava-probe", own, question] for kind, question in questions.items()}
        # A worker hands back between two steps, which it looks for at each heartbeat.
        assert pod["terminationGracePeriodSeconds"] >= 4 * Settings().heartbeat_s + 60


def test_other_pods_start_commands() -> None:
    for name in ("migrate", "serve"):
        program, command, *_ = container(pods("all")[name])["command"]
        assert program == "ragllava" and command in COMMANDS


def test_migrations_come_before_everything_else() -> None:
    [job] = of_kind("all", "Job").values()
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = job["spec"]["template"]["spec"]
    needed = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    needed |= {entry["valueFrom"]["secretKeyRef"]["name"] for entry in container(pod)["env"] if "valueFrom" in entry}
    assert needed == {"ragllava"}, "a hook finds nothing that the chart makes"
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]


def test_there_is_one_maintenance_worker_or_none() -> None:
    for value_set in VALUE_SETS:
        ours = [item for name, item in of_kind(value_set, "Deployment").items() if name.endswith("-maintenance")]
        assert [item["spec"]["replicas"] for item in ours] == ([] if value_set == "workers-only" else [1])


def test_keda_and_replicas_exclude_each_other() -> None:
    scaled = {item["spec"]["scaleTargetRef"]["name"] for item in of_kind("all", "ScaledObject").values()}
    assert {name.removeprefix("archive-ragllava-") for name in scaled} == {"ingest", "answer", "train"}
    for value_set in ("all", "minimal"):
        for name, item in of_kind(value_set, "Deployment").items():
            assert ("replicas" in item["spec"]) == (value_set == "minimal" or name not in scaled)
    for item in of_kind("gpu", "ScaledObject").values():
        assert float(item["spec"]["triggers"][0]["metadata"]["targetQueryValue"]) > 0
    [keys] = [item["spec"]["secretTargetRef"] for item in of_kind("all", "TriggerAuthentication").values()]
    assert [entry["key"] for entry in keys] == ["RAGLLAVA_SCALE_DATABASE_URL"]


def test_gpus_are_asked_for_and_used() -> None:
    gpu = pods("gpu")
    assert container(gpu["answer"])["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container(gpu["train"])["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert {name: variables(gpu[name])["RAGLLAVA_DEVICE"] for name in WORKERS} == dict.fromkeys(WORKERS, "cuda") | {
        "maintenance": "cpu"
    }
    assert of_kind("gpu", "Deployment")["archive-ragllava-answer"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert all("nvidia.com/gpu" not in json.dumps(pod) for pod in pods("minimal").values())


def test_a_claim_is_free_before_the_next_pod_comes_and_numbers_keep_their_form(tmp_path: Path) -> None:
    values = (
        "settings: {RAGLLAVA_API_QUESTIONS_PER_DAY: 1000000, RAGLLAVA_HELD_OUT_SHARE: 0.25, RAGLLAVA_S3_SECURE: true}\n"
    )
    (tmp_path / "values.yaml").write_text(values + "workers: {train: {home: {existingClaim: trainings}}}")
    run = run_helm("template", "archive", CHART, *MINIMAL, "--values", tmp_path / "values.yaml")
    items = {item["metadata"]["name"]: item for item in yaml.safe_load_all(run.stdout) if item["kind"] == "Deployment"}
    surge = {name: item["spec"]["strategy"]["rollingUpdate"]["maxSurge"] for name, item in items.items()}
    assert {name for name, number in surge.items() if number == 0} == {"archive-ragllava-train"}
    given = variables(items["archive-ragllava-train"]["spec"]["template"]["spec"])
    assert given["RAGLLAVA_API_QUESTIONS_PER_DAY"] == "1000000"
    assert (given["RAGLLAVA_HELD_OUT_SHARE"], given["RAGLLAVA_S3_SECURE"]) == ("0.25", "true")


def test_the_server_believes_the_proxies_that_are_named() -> None:
    assert variables(pods("all")["serve"])["FORWARDED_ALLOW_IPS"] == "10.0.0.0/8"
    assert "FORWARDED_ALLOW_IPS" not in variables(pods("minimal")["serve"])


def test_the_example_reaches_the_models_that_it_names() -> None:
    address = variables(pods("all")["answer"])["RAGLLAVA_VLLM_URL"]
    rules = of_kind("all", "NetworkPolicy")["archive-ragllava"]["spec"]["egress"]
    ports = {port["port"] for rule in rules[1:] if "models" in json.dumps(rule) for port in rule["ports"]}
    assert ports == {urlsplit(address).port}


def test_the_rules_are_those_of_prometheus() -> None:
    [rule] = of_kind("all", "PrometheusRule").values()
    assert rule["spec"] == yaml.safe_load((ROOT / "infra" / "prometheus" / "rules.yml").read_text())
    assert (CHART / "files" / "rules.yml").is_symlink()


def test_what_operators_define_is_off_by_default() -> None:
    assert {item["kind"] for item in rendered("minimal")} == EVERY - {
        "Ingress", "ScaledObject", "TriggerAuthentication", "PodMonitor", "PrometheusRule",
    }  # fmt: skip


def test_only_the_server_and_the_metrics_of_workers_can_be_reached() -> None:
    policies = of_kind("all", "NetworkPolicy")
    assert policies["archive-ragllava"]["spec"]["ingress"] == []
    ports = {
        rule["ports"][0]["port"]: [peer["namespaceSelector"]["matchLabels"] for peer in rule["from"]]
        for rule in policies["archive-ragllava-serve"]["spec"]["ingress"]
    }
    key = "kubernetes.io/metadata.name"
    assert ports == {"http": [{key: "ingress"}], "metrics": [{key: "monitoring"}]}
    served = {port["name"] for port in container(pods("all")["serve"])["ports"]}
    assert set(ports) == served
    own = policies["archive-ragllava-workers"]["spec"]
    assert own["ingress"] == policies["archive-ragllava-serve"]["spec"]["ingress"][1:], "as the metrics of the server"
    monitors = of_kind("all", "PodMonitor")
    assert monitors["archive-ragllava-workers"]["spec"]["selector"] == own["podSelector"]
    [endpoint] = monitors["archive-ragllava-workers"]["spec"]["podMetricsEndpoints"]
    [expression] = own["podSelector"]["matchExpressions"]
    assert expression == {"key": "app.kubernetes.io/component", "operator": "In", "values": list(WORKERS)}
    for name in WORKERS:
        [port] = container(pods("all")[name])["ports"]
        settings = Settings(
            **{key[9:].lower(): value for key, value in variables(pods("all")[name]).items() if "METRICS" in key}
        )
        assert (endpoint["port"], settings.worker_metrics_port) == (port["name"], port["containerPort"])
        assert settings.metrics_beyond_loopback and not is_loopback(settings.worker_metrics_host)


def test_workers_listen_nowhere_by_default() -> None:
    assert set(of_kind("minimal", "NetworkPolicy")) == {"archive-ragllava", "archive-ragllava-serve"}
    for name in WORKERS:
        pod = pods("minimal")[name]
        assert "ports" not in container(pod) and not any("METRICS" in variable for variable in variables(pod))


def test_the_versions_of_chart_and_package_are_the_same() -> None:
    import ragllava

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == ragllava.__version__
