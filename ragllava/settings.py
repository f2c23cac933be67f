"""One frozen Settings object, built at the entry points and passed down.

Every field can be set by an environment variable `RAGLLAVA_<FIELD>`. Services that are not given by URL are the
embedded ones: `ragllava up` writes their addresses to `<home>/run/services.json`, and `load_settings` reads them
from there. Nothing in this module reads the environment at import.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ragllava.errors import SettingsError

_PREFIX = "RAGLLAVA_"
_SCHEMES = {
    "database_url": ("postgresql", "postgres", "postgresql+psycopg"),
    "redis_url": ("redis", "rediss"),
}


def default_home() -> Path:
    """Where the embedded services keep their data when RAGLLAVA_HOME is not set."""
    return Path.home() / ".local" / "share" / "ragllava"


class Settings(BaseSettings):
    """All settings, with units in their names. An empty variable counts as one that is not set."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    home: Path = Field(default_factory=default_home)

    # Services. None: the embedded one of `ragllava up`.
    database_url: SecretStr | None = None  # postgresql://user:password@host:port/name
    redis_url: SecretStr | None = None  # redis://:password@host:port/0
    s3_endpoint: str | None = None  # host:port
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    s3_region: str = "us-east-1"
    s3_secure: bool = False  # https
    s3_bucket: str = "ragllava"

    # Events of buckets.
    events_token: SecretStr | None = None  # what the receiver asks for; None: the one that `ragllava up` generates
    events_list: str | None = None  # a Redis list that MinIO appends its events to

    # Models.
    profile: str = "mini"  # mini, base or paper; see models/profiles.py
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    torch_threads: int = 0  # 0: torch decides
    models_dir: Path | None = None  # a folder of downloaded models, searched before the hub's cache
    image_cache_mib: int = 512  # decoded pictures kept in a worker

    # An OpenAI-compatible endpoint, such as vLLM's server, that reranks and answers in place of this process.
    vllm_url: str | None = None  # http://host:8000
    vllm_api_key: SecretStr | None = None  # None: the endpoint asks for none
    vllm_model: str | None = None  # the name that it serves the base under; None: that of its only base
    vllm_requests: int = Field(default=32, ge=1)  # on their way at once
    vllm_timeout_s: float = Field(default=120.0, gt=0)  # of one request
    vllm_tolerance: float = Field(default=0.02, gt=0, lt=1)  # by which golden scores may differ from the weights' own
    vllm_golden_dir: Path | None = None  # golden scores from another machine, for one without the weights

    # Answering.
    top_k: int = Field(default=20, ge=1, le=1000)
    top_n: int = Field(default=2, ge=1, le=20)
    shard_seconds: float = Field(default=60.0, gt=0)  # a shard of questions is planned to take at most so long
    questions_per_shard: int = Field(default=4096, ge=1)  # at most, and so many are planned together
    questions_per_step: int = Field(default=8, ge=1)  # a sub-batch: cancel, pause and stop are noticed between
    pairs_per_batch: int = Field(default=20, ge=1)
    max_answer_tokens: int = Field(default=32, ge=1)

    # Doubt: which answers are logged as noisy cases; see stages/answer/doubts.py.
    near_threshold_logits: float = Field(default=1.0, ge=0)  # a relevance is so close to η; 0: never
    low_confidence: float = Field(default=0.6, ge=0, le=1)  # an answer is less sure than this; 0: never
    leave_one_out: bool = True  # answer again without the least relevant kept image, where two or more were kept

    # Ingest.
    files_per_shard: int = Field(default=256, ge=1)
    files_per_step: int = Field(default=64, ge=1)
    embed_batch: int = Field(default=64, ge=1)
    decoders: int = Field(default=0, ge=0)  # sandboxed child processes that decode pictures; 0: one for two cores

    # Reindexing.
    gate_questions: int = Field(default=20, ge=0)  # old questions that a new index must answer as well as the old one

    # Work (RELIABILITY D3 to D5). The database's clock decides all of these.
    lease_s: float = Field(default=60.0, gt=0)
    heartbeat_s: float = Field(default=15.0, gt=0)
    tick_s: float = Field(default=5.0, gt=0)  # sweep and dispatch
    queued_timeout_s: float = Field(default=30.0, gt=0)  # a message older than this is taken for lost
    max_attempts: int = Field(default=2, ge=1)  # of a shard before it is halved, or dead at size one
    max_transient_attempts: int = Field(default=30, ge=1)  # of a shard whose services did not answer: half an hour
    retry_backoff_s: float = Field(default=2.0, gt=0)
    shard_time_limit_s: float = Field(default=1800.0, gt=0)  # hard limit of a worker child
    worker_memory_mib: int = Field(default=0, ge=0)  # 0: no limit; else a child above it is replaced

    # Training. Shares of the labelled pictures: questions about one of them judge versions, or fit η. Only questions
    # all of whose pictures are in neither are trained on: (1 - share) ** k of those about k pictures.
    held_out_share: float = Field(default=0.25, gt=0, lt=1)
    calibration_share: float = Field(default=0.15, ge=0, lt=1)
    set_aside_above: float = Field(default=0.9, gt=0, le=1)  # unlabelled and as relevant: to be reviewed, not learned
    train_time_limit_s: float = Field(default=86_400.0, gt=0)  # hard limit of one training, judging included
    train_processes: int = Field(default=1, ge=1)  # GPUs of one training; more than one through `accelerate launch`
    train_niceness: int = Field(default=10, ge=0, le=19)  # of the train worker: answers go first
    retrain_after: int = Field(default=0, ge=0)  # labelled questions that start a training by themselves; 0: never

    # Maintenance: what the maintenance task `retention` drops.
    keep_jobs_days: int = Field(default=0, ge=0)  # ended jobs with their results; 0: for ever
    keep_indexes_hours: int = Field(default=24, ge=0)  # an index after another one took its place

    @field_validator("home")
    @classmethod
    def _whole_path(cls, value: Path) -> Path:
        # The workers run in a folder of their own, where a relative path would mean another place.
        return value.expanduser().absolute()

    @field_validator(*_SCHEMES)
    @classmethod
    def _check_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # What is wrong is said without the address itself: it may hold a password.
        schemes = _SCHEMES[str(info.field_name)]
        if value is not None and not _is_url(value.get_secret_value(), schemes):
            raise ValueError(f"this is no address of the form {schemes[0]}://user:password@host:port/name")
        return value

    @field_validator("vllm_url")
    @classmethod
    def _root_of_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _is_url(value, ("http", "https")) or not urlsplit(value).hostname:
            raise ValueError("this is no address of the form http://host:port")
        # People know the address that OpenAI's clients want, which ends so.
        return value.rstrip("/").removesuffix("/v1").rstrip("/")

    @model_validator(mode="after")
    def _cross_check(self) -> Settings:
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError(
                f"RAGLLAVA_HEARTBEAT_S={self.heartbeat_s:g} must be at most half of RAGLLAVA_LEASE_S={self.lease_s:g}, "
                "or one lost beat costs the lease"
            )
        if self.held_out_share + self.calibration_share >= 1:
            raise ValueError(
                f"RAGLLAVA_HELD_OUT_SHARE={self.held_out_share:g} and RAGLLAVA_CALIBRATION_SHARE="
                f"{self.calibration_share:g} together must be below 1, or nothing is left to train on"
            )
        return self

    @property
    def services_file(self) -> Path:
        """Addresses and passwords of the running embedded services (mode 0600)."""
        return self.home / "run" / "services.json"

    def require_database(self) -> str:
        """The database's URL for psycopg 3 through SQLAlchemy."""
        if self.database_url is None:
            raise SettingsError(_not_running("database", "RAGLLAVA_DATABASE_URL"))
        url = self.database_url.get_secret_value()
        for scheme in ("postgresql://", "postgres://"):
            if url.startswith(scheme):
                return "postgresql+psycopg://" + url.removeprefix(scheme)
        return url

    def require_redis(self) -> str:
        """The broker's URL."""
        if self.redis_url is None:
            raise SettingsError(_not_running("queue", "RAGLLAVA_REDIS_URL"))
        return self.redis_url.get_secret_value()


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port  # refuses what is no number
    except ValueError:
        return False
    return "://" in value and parts.scheme in schemes


def _not_running(what: str, variable: str) -> str:
    return f"no {what}: start the embedded services with `ragllava up`, or set {variable}"


def load_settings(**overrides: Any) -> Settings:
    """Settings from overrides, then the environment, then the embedded services that are running.

    Raises SettingsError with one sentence that names the variable.
    """
    _refuse_unknown_variables()
    try:
        first = Settings(**overrides)
        embedded = read_services(first.services_file)
        missing = {name: value for name, value in embedded.items() if getattr(first, name) is None}
        return Settings(**(overrides | missing)) if missing else first
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def read_services(path: Path) -> dict[str, str]:
    """The settings of the embedded services, or {} when none were started. Raises SettingsError for a damaged file."""
    try:
        found = dict(json.loads(path.read_text())["settings"])
        for name, value in found.items():
            if name not in Settings.model_fields or not isinstance(value, str):
                raise ValueError(f"{name} is no setting of ours, or no text")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is damaged ({error}); remove it and run `ragllava up`") from None


def _refuse_unknown_variables() -> None:
    known = [_PREFIX + name.upper() for name in Settings.model_fields]
    for name in os.environ:
        if name.startswith(_PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)
            guess = f"did you mean {close[0]}? " if close else ""
            raise SettingsError(f"unknown setting {name}; {guess}`ragllava doctor` lists the known ones")


def _sentence(error: ValidationError) -> str:
    """The first mistake, with the variable that makes it; a value is shown unless it may hold a password."""
    problem = error.errors()[0]
    text = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return text
    name = str(problem["loc"][0])
    field = Settings.model_fields.get(name)
    is_secret = field is None or "SecretStr" in str(field.annotation)
    return f"{_PREFIX}{name.upper()}: {text}" + ("" if is_secret else f", not {problem['input']!r}")
