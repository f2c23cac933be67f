"""One frozen Settings object, built at the entry points and passed down.

Every field can be set by an environment variable `RAGLLAVA_<FIELD>`, or by a line `<field> = …` of the file
`<home>/ragllava.toml`, which all terminals and workers of a home share; the variable wins. The files of a folder
`RAGLLAVA_SETTINGS_DIR` come between the two. A service without an address is the embedded one: `ragllava up` writes its
address to `<home>/run/services.json`, and `load_settings` reads it from there. Nothing in this module reads the
environment at import. docs/settings.md is generated from the descriptions below by `make docs`.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ragllava.errors import SettingsError
from ragllava.records import Depth, Retrieval

_PREFIX = "RAGLLAVA_"
SETTINGS_FILE = "ragllava.toml"  # in the home
_BY_VARIABLE = ("home", "settings_dir")  # they say where other settings are
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_SCHEMES = {
    "database_url": _POSTGRES,
    "database_owner_url": _POSTGRES,
    "api_database_url": _POSTGRES,
    "scale_database_url": _POSTGRES,
    "redis_url": ("redis", "rediss", "unix"),
}


def default_home() -> Path:
    """Where the embedded services keep their data when RAGLLAVA_HOME is not set."""
    return Path.home() / ".local" / "share" / "ragllava"


def variable_of(name: str) -> str:
    """The environment variable of a field: `top_k` → `RAGLLAVA_TOP_K`."""
    return _PREFIX + name.upper()


class Settings(BaseSettings):
    """All settings, with units in their names. An empty variable counts as not set."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    home: Path = Field(
        default_factory=default_home, description="Folder for the data, logs and passwords of the embedded services."
    )
    settings_dir: Path | None = Field(
        default=None,
        description="Folder of files that each hold one setting and are named as its variable, such as "
        "`RAGLLAVA_DATABASE_URL`: so passwords need not be variables. A variable wins over its file. It is set by its "
        "own variable alone, as an absolute path.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="Form of log lines of workers and of the receiver: `text`, or `json`, one object for each line.",
    )

    database_url: SecretStr | None = Field(
        default=None,
        description="Address of the database: `postgresql://user:password@host:port/name`, or "
        "`postgresql://user:password@/name?host=/folder` for a Unix socket. "
        "Not set: the embedded PostgreSQL of `ragllava up`.",
    )
    database_owner_url: SecretStr | None = Field(
        default=None,
        description="Address of the same database with the role that owns its tables, for `ragllava migrate` alone, "
        "which gives the role of `RAGLLAVA_DATABASE_URL` its rights. Not set: one role is both.",
    )
    scale_database_url: SecretStr | None = Field(
        default=None,
        description="Address of the same database with the role of what starts and stops workers (KEDA), for "
        "`ragllava migrate` alone, which makes the role: it may call `ragllava_scale` and reads no table. "
        "Not set: there is no such role.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Address of the queue: `redis://:password@host:port/0`, or `unix://:password@/path?db=0` for a "
        "Unix socket. Not set: the embedded Redis.",
    )
    s3_endpoint: str | None = Field(
        default=None,
        description="Address of the object store, also in addresses that are signed for other programs: `host:port`. "
        "Not set: the embedded SeaweedFS.",
    )
    s3_socket: str | None = Field(
        default=None,
        description="Path of a Unix socket at which the object store is reached in place of its address. "
        "Not set: that of the embedded SeaweedFS, if `RAGLLAVA_S3_ENDPOINT` is not set either.",
    )
    s3_access_key: str | None = Field(
        default=None, description="Access key of the object store. Not set: that of the embedded one."
    )
    s3_secret_key: SecretStr | None = Field(
        default=None, description="Secret key of the object store. Not set: that of the embedded one."
    )
    s3_region: str = Field(default="us-east-1", description="Region of the bucket.")
    s3_secure: bool = Field(default=False, description="Connect to the object store by HTTPS.")
    s3_bucket: str = Field(
        default="ragllava", description="Bucket for pictures and results. It is created at the first write."
    )

    events_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that `ragllava receiver` requires of an object store that posts events. "
        "Not set: the token that `ragllava up` generates.",
    )
    events_list: str | None = Field(
        default=None, description="Key of a Redis list to which MinIO appends its events. Not set: no list is read."
    )

    submit_prefixes: str = Field(
        default="",
        description="Parts of buckets whose question files may be submitted by message, besides those that are bound: "
        "`s3://bucket/prefix/`, separated by commas.",
    )

    api_database_url: SecretStr | None = Field(
        default=None,
        description="Address of the database with the role of the HTTP API, which owns nothing and sees only the "
        "archives of a request. `ragllava migrate` makes the role. Not set: that of the embedded PostgreSQL.",
    )
    api_questions_per_day: int = Field(
        default=0, ge=0, description="Questions that a caller of the HTTP API may ask in a day (UTC). 0: no limit."
    )
    api_open_jobs: int = Field(
        default=100, ge=0, description="Jobs of a caller that may be open at the same time. 0: no limit."
    )
    api_stored_mib: int = Field(
        default=10_240,
        ge=0,
        description="MiB of files and of pictures to ask with that a caller may store. 0: no limit.",
    )
    api_requests_per_minute: int = Field(
        default=0, ge=0, description="Requests of a caller in a minute, for each server process. 0: no limit."
    )
    api_answer_timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds that a request waits for the answer to a single question."
    )
    api_picture_hosts: str = Field(
        default="",
        description="Hosts from which pictures that questions are asked with may be fetched, by `https` alone: "
        "`pictures.example.org`, or with a port, separated by commas. Empty: none.",
    )
    api_buckets: str = Field(
        default="",
        description="Parts of buckets that callers of the HTTP API may bind to archives: `s3://bucket/prefix/`, "
        "separated by commas. Empty: none.",
    )
    webhook_hosts: str = Field(
        default="",
        description="Where webhooks may be sent: `https://host` or `https://host:port`, separated by commas; with "
        "`http://` for a host that has no certificate. Empty: nowhere.",
    )
    oidc_issuer: str | None = Field(
        default=None,
        description="Address of the OpenID Connect provider whose tokens the HTTP API accepts besides its own keys: "
        "`https://host/path`, as in the claim `iss`. Not set: only keys.",
    )
    oidc_audience: str | None = Field(
        default=None, description="The claim `aud` that tokens must have. Required with `RAGLLAVA_OIDC_ISSUER`."
    )
    oidc_keys_url: str | None = Field(
        default=None,
        description="Address of the provider's public keys (JWKS). Not set: the one that its configuration names.",
    )
    oidc_keys_kept_s: float = Field(
        default=3_600.0,
        ge=60.0,
        description="Seconds after which the provider's keys are fetched again; a key that it has withdrawn is refused "
        "then. While it does not answer, keys are trusted for as long once more.",
    )
    oidc_groups_claim: str = Field(default="groups", description="The claim that lists the groups of a user.")
    oidc_groups: str = Field(
        default="",
        description="What the groups of the provider may do, separated by commas: `group=role` for all archives, or "
        "`group=role:archive+archive`. Roles are `read`, `ask`, `write`, `review` and `admin`.",
    )
    oidc_client_id: str | None = Field(
        default=None,
        description="The name of the console at the provider, as a client of the authorization code flow. Needs "
        "`RAGLLAVA_OIDC_ISSUER`. Not set: browsers sign in with keys and tokens only.",
    )
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="The secret of that client. Not set: a public client, which PKCE alone protects."
    )
    oidc_scope: str = Field(
        default="openid profile",
        description="What a browser asks the provider for; some give groups only with `openid groups`.",
    )
    console_url: str | None = Field(
        default=None,
        description="Address at which browsers reach the server, as `https://ragllava.example.org`; the provider sends "
        "them back to `/console/sign-in/provider/return` below it. Not set: the address that the browser has used.",
    )

    notify_rules: str = Field(
        default="",
        description="Who is told of what: `event=mailto:address` or `event=https://…`, separated by commas or lines; "
        "`event:archive=…` for an archive alone. Events are `job_ended`, `job_failed`, `training_refused`, `gap_found` "
        "and `disk_low`.",
    )
    notify_secret: SecretStr | None = Field(
        default=None,
        description="Secret by which webhooks of `RAGLLAVA_NOTIFY_RULES` are signed: `whsec_` and base64. Their hosts "
        "are named in `RAGLLAVA_WEBHOOK_HOSTS`.",
    )
    smtp_host: str | None = Field(
        default=None, description="Mail server: `host` or `host:port`. Not set: no mails are sent."
    )
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="How the connection to the mail server is encrypted."
    )
    smtp_user: str | None = Field(default=None, description="User at the mail server. Not set: no sign-in.")
    smtp_password: SecretStr | None = Field(default=None, description="Password of this user.")
    smtp_sender: str | None = Field(default=None, description="Address from which mails are sent.")
    disk_low_gib: float = Field(
        default=5.0,
        ge=0,
        description="GiB of free disk of the home below which `disk_low` is told by the maintenance worker. 0: never.",
    )

    metrics_host: str = Field(
        default="127.0.0.1", description="Address on which `ragllava serve` listens for Prometheus, at `/metrics`."
    )
    metrics_port: int = Field(default=8601, ge=0, le=65_535, description="Port of the metrics. 0: none are served.")
    metrics_beyond_loopback: bool = Field(
        default=False,
        description="Allow an address of the metrics beyond this machine. They need no key, so only your own machines "
        "may reach it.",
    )

    worker_metrics_host: str = Field(
        default="127.0.0.1",
        description="Address on which a worker serves the figures of its own process. An address beyond this machine "
        "needs `RAGLLAVA_METRICS_BEYOND_LOOPBACK`.",
    )
    worker_metrics_port: int = Field(
        default=0,
        ge=0,
        le=65_000,
        description="Port at which a worker of one slot serves the figures of its own process. Those of `ragllava up` "
        "take this one and the next ones. 0: none are served.",
    )

    profile: str = Field(
        default="mini", description="Which models run: `mini`, `base`, `paper`, or the path of a profile file."
    )
    device: str = Field(default="auto", description="Device of the models: `auto`, `cpu`, `cuda`, `cuda:1`, and so on.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision of the models. `auto`: float32 on a CPU, bfloat16 on a GPU that supports it, "
        "else float16.",
    )
    torch_threads: int = Field(default=0, description="CPU threads of PyTorch in each process. 0: PyTorch decides.")
    models_dir: Path | None = Field(
        default=None, description="Folder of downloaded models. It is searched before the cache of the model hub."
    )
    image_cache_mib: int = Field(default=512, description="MiB of decoded pictures that an answer worker keeps.")

    vllm_url: str | None = Field(
        default=None,
        description="Address of a vLLM server that reranks and answers in place of the workers: `http://host:port`.",
    )
    vllm_api_key: SecretStr | None = Field(
        default=None, description="API key that the vLLM server was started with. Not set: it requires none."
    )
    vllm_model: str | None = Field(
        default=None,
        description="Name under which the vLLM server serves the base model. Required if it serves several models.",
    )
    vllm_requests: int = Field(
        default=32, ge=1, description="Requests that each worker sends to the vLLM server at the same time."
    )
    vllm_timeout_s: float = Field(default=120.0, gt=0, description="Seconds that one request to it may take.")
    vllm_tolerance: float = Field(
        default=0.02,
        gt=0,
        lt=1,
        description="Largest allowed difference between a golden score of the vLLM server and that of the weights.",
    )
    vllm_golden_dir: Path | None = Field(
        default=None,
        description="Folder of golden scores that were computed on another machine, for a machine without the weights.",
    )

    retrieval: Retrieval = Field(
        default=Retrieval.HYBRID,
        description="How candidates are found: `hybrid` by pictures and by the words of captions, "
        "`picture` by pictures alone (as in the paper), `caption` by words alone.",
    )
    depth: Depth = Field(
        default=Depth.NEED,
        description="How many candidates are reranked: `need`, the strongest first until the evidence suffices, or "
        "`fixed`, all of them (as in the paper).",
    )
    top_k: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Pictures retrieved for each question; up to 10 found by words are added to them.",
    )
    top_n: int = Field(default=2, ge=1, le=20, description="Largest number of images that an answer is based on.")
    shard_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Longest planned duration of a shard of questions, in seconds. "
        "A shard is planned to take at least a third of it.",
    )
    questions_per_shard: int = Field(
        default=4096, ge=1, description="Largest number of questions that are planned together, and in one shard."
    )
    questions_per_step: int = Field(
        default=8,
        ge=1,
        description="Questions whose answers are committed together. "
        "A worker notices cancel, pause and stop between two steps.",
    )
    pairs_per_batch: int = Field(
        default=20,
        ge=1,
        description="Question-image pairs reranked in one forward pass. Halved when the device runs out of memory.",
    )
    max_answer_tokens: int = Field(default=32, ge=1, description="Largest number of tokens of an answer.")

    near_threshold_logits: float = Field(
        default=1.0,
        ge=0,
        description="An answer is logged as a noisy case if the relevance of one of its first `RAGLLAVA_TOP_N` images "
        "is nearer to the threshold than this, in logits. 0: never.",
    )
    low_confidence: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="An answer is logged as a noisy case if its confidence is below this. 0: never.",
    )
    leave_one_out: bool = Field(
        default=True,
        description="Answer again without the least relevant kept image if two or more were kept. "
        "If the answer changes, it is logged as a noisy case.",
    )

    review_lease_s: float = Field(
        default=120.0,
        ge=5,
        le=3_600,
        description="Seconds for which a noisy case belongs to the reviewer who has it open. The console renews it "
        "while its page is open.",
    )

    upload_files: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether `ragllava ingest` uploads the files, for ingest workers that do not see them under the "
        "same paths. `auto`: if an ingest worker runs on another host.",
    )
    files_per_shard: int = Field(default=256, ge=1, description="Files in one shard of an ingest job.")
    files_per_step: int = Field(default=64, ge=1, description="Files that are committed together.")
    embed_batch: int = Field(default=64, ge=1, description="Pictures embedded in one forward pass.")
    decoders: int = Field(
        default=0,
        ge=0,
        description="Child processes that decode pictures, in each ingest worker. "
        "0: one for every two CPU cores, at most 8.",
    )

    removals_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of the pictures of a watched folder or a bound bucket that leave the archive at "
        "once when their files are gone. Of more, none leaves before `--allow-removals` is given. 1: no limit.",
    )
    max_megapixels: int = Field(
        default=250,
        ge=1,
        description="Largest picture that is accepted, in millions of pixels. Of WEBP, AVIF, HEIC, JPEG 2000 and JPEG "
        "XL, at most 100: a decoder has 2 GiB of memory.",
    )
    max_picture_side: int = Field(
        default=65_000, ge=1, description="Longest side of a picture that is accepted, in pixels."
    )

    gate_questions: int = Field(
        default=20,
        ge=0,
        description="Earlier questions that the reindexing gate answers from both the old and the new index.",
    )

    lease_s: float = Field(
        default=60.0, gt=0, description="Seconds after which a worker that sends no heartbeat loses its shard."
    )
    heartbeat_s: float = Field(
        default=15.0,
        gt=0,
        description="Seconds between two heartbeats, which extend the lease: at most half of `RAGLLAVA_LEASE_S`.",
    )
    tick_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds between two ticks. A tick reaps leases that ran out and dispatches shards.",
    )
    queued_timeout_s: float = Field(
        default=30.0, gt=0, description="Seconds after which a message is considered lost and re-sent."
    )
    max_attempts: int = Field(
        default=2,
        ge=1,
        description="Attempts of a shard without progress before it is halved or, with a single input, dead. A single "
        "input whose workers vanish has twice as many.",
    )
    max_transient_attempts: int = Field(
        default=30,
        ge=1,
        description="Attempts of a shard whose services did not answer. With the default delays: about half an hour.",
    )
    retry_backoff_s: float = Field(
        default=2.0,
        gt=0,
        description="First delay in seconds before a shard whose services did not answer is tried again. "
        "It doubles each time, up to 60 seconds.",
    )
    shard_time_limit_s: float = Field(
        default=1800.0, gt=0, description="Seconds after which the process that works on a shard is killed."
    )
    worker_memory_mib: int = Field(
        default=0, ge=0, description="MiB of memory above which a worker's child process is replaced. 0: no limit."
    )

    # Only questions none of whose images is held out or calibrates are trained on: (1 - share) ** k of those about k.
    held_out_share: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="Share of the labelled images that are held out. Questions about them are never trained on; "
        "the gate compares model versions on them.",
    )
    calibration_share: float = Field(
        default=0.15,
        ge=0,
        lt=1,
        description="Share of the labelled images that calibrate. The threshold of a new reranker is fitted on the "
        "questions about them.",
    )
    set_aside_above: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Unlabelled images with at least this relevance are not used as negatives; they wait for review.",
    )
    train_time_limit_s: float = Field(
        default=86_400.0,
        gt=0,
        description="Seconds after which the process of a training is killed. Evaluation is included.",
    )
    train_processes: int = Field(
        default=1,
        ge=1,
        description="Processes of one training, one for each GPU. More than one: through `accelerate launch`.",
    )
    train_niceness: int = Field(
        default=10, ge=0, le=19, description="Niceness of training processes, so that answers go first."
    )
    retrain_after: int = Field(
        default=0,
        ge=0,
        description="Start a training of a role when this many questions were labelled since the last one, and "
        "evaluate the newest refused version again at half as many. 0: never.",
    )

    keep_jobs_days: int = Field(
        default=0,
        ge=0,
        description="Days after which the maintenance task `retention` drops an ended job with its results. "
        "Trainings, and jobs with labels or open noisy cases, are kept. 0: all jobs are kept.",
    )
    keep_noisy_days: int = Field(
        default=90,
        ge=0,
        description="Days for which a noisy case that nobody labels keeps its job from `retention`. 0: for ever.",
    )
    keep_retired_days: int = Field(
        default=365,
        ge=0,
        description="Days after which `retention` erases a picture whose file is gone or was overwritten: its bytes, "
        "its caption, and where it was evidence. 0: never.",
    )
    keep_audit_days: int = Field(
        default=365,
        ge=0,
        description="Days after which `retention` deletes the record of a call to the HTTP API. 0: never.",
    )
    keep_indexes_hours: int = Field(
        default=24,
        ge=0,
        description="Hours that a replaced index is kept for a switch back, before `retention` drops it.",
    )

    backup_to: str | None = Field(
        default=None,
        description="Where `ragllava backup` and the maintenance task `backup` put backups, unless the command names a "
        "place: a folder, which every ingest worker then has to see, or `s3://bucket/prefix`.",
    )
    backup_keep: int = Field(
        default=0, ge=0, description="Newest backups that are kept there; older ones are removed. 0: all are kept."
    )
    backup_s3_endpoint: str | None = Field(
        default=None,
        description="Address of the object store of backups: `host:port`. Not set: that of the pictures, which "
        "does not protect from its loss.",
    )
    backup_s3_access_key: str | None = Field(default=None, description="Access key of that object store.")
    backup_s3_secret_key: SecretStr | None = Field(default=None, description="Secret key of that object store.")
    backup_s3_secure: bool = Field(default=True, description="Connect to that object store by HTTPS.")

    @field_validator("home")
    @classmethod
    def _whole_path(cls, value: Path) -> Path:
        # The workers run in a folder of their own, where a relative path would name another folder.
        return value.expanduser().absolute()

    @field_validator(*_SCHEMES)
    @classmethod
    def _check_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # The message leaves out the address, which may hold a password.
        schemes = _SCHEMES[str(info.field_name)]
        if value is not None and not _is_url(value.get_secret_value(), schemes):
            raise ValueError(f"this is not an address of the form {schemes[0]}://user:password@host:port/name")
        return value

    @field_validator("submit_prefixes")
    @classmethod
    def _check_prefixes(cls, value: str) -> str:
        for prefix in filter(None, value.split(",")):
            if not re.fullmatch(r"s3://[a-z0-9.-]+/(.*/)?", prefix.strip()):
                raise ValueError("this is not a list of addresses of the form s3://bucket/prefix/")
        return value

    @field_validator("vllm_url")
    @classmethod
    def _root_of_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _is_url(value, ("http", "https")) or not urlsplit(value).hostname:
            raise ValueError("this is not an address of the form http://host:port")
        # Clients of OpenAI's API are given the address with this ending.
        return value.rstrip("/").removesuffix("/v1").rstrip("/")

    @model_validator(mode="after")
    def _cross_check(self) -> Settings:
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError(
                f"RAGLLAVA_HEARTBEAT_S={self.heartbeat_s:g} must be at most half of RAGLLAVA_LEASE_S={self.lease_s:g}, "
                "or one lost beat costs the lease"
            )
        if self.s3_secure and self.s3_socket is not None:
            raise ValueError(
                "RAGLLAVA_S3_SECURE=true is for an object store with an address: a Unix socket (RAGLLAVA_S3_SOCKET, or "
                "that of the embedded SeaweedFS) is reached without HTTPS; leave out one of the two, or set "
                "RAGLLAVA_S3_ENDPOINT to a store of yours"
            )
        if self.held_out_share + self.calibration_share >= 1:
            raise ValueError(
                f"RAGLLAVA_HELD_OUT_SHARE={self.held_out_share:g} and RAGLLAVA_CALIBRATION_SHARE="
                f"{self.calibration_share:g} together must be below 1, or nothing is left to train on"
            )
        return self

    @property
    def existing_home(self) -> Path:
        """The folder `home`, or the nearest one above it that exists: it is on the same disk."""
        home = self.home.absolute()
        return next(path for path in (home, *home.parents) if path.exists())

    @property
    def services_file(self) -> Path:
        """Addresses and passwords of the running embedded services (mode 0600)."""
        return self.home / "run" / "services.json"

    @property
    def settings_file(self) -> Path:
        """Settings that all terminals and workers of this home share; it need not exist."""
        return self.home / SETTINGS_FILE

    def require_database(self) -> str:
        """The database's URL for psycopg 3 through SQLAlchemy."""
        if self.database_url is None:
            raise SettingsError(_not_running("database", "RAGLLAVA_DATABASE_URL", self.home))
        return _with_driver(self.database_url.get_secret_value())

    def require_database_owner(self) -> str:
        """As `require_database`, with the role that may change the tables."""
        application = self.require_database()
        return (
            application if self.database_owner_url is None else _with_driver(self.database_owner_url.get_secret_value())
        )

    def require_api_database(self) -> str:
        """As `require_database`, with the role of the HTTP API."""
        url = self.api_database()
        if url is None:
            raise SettingsError(
                "the HTTP API has no role in the database: set RAGLLAVA_API_DATABASE_URL to the address of the "
                "database with a user of its own, here and for `ragllava migrate`, which makes that user"
            )
        return url

    def api_database(self) -> str | None:
        """As `require_database`, with the role of the HTTP API; None without one."""
        return None if self.api_database_url is None else _with_driver(self.api_database_url.get_secret_value())

    def scale_database(self) -> str | None:
        """As `require_database`, with the role of what starts and stops workers; None without one."""
        return None if self.scale_database_url is None else _with_driver(self.scale_database_url.get_secret_value())

    def require_redis(self) -> str:
        """The broker's URL."""
        if self.redis_url is None:
            raise SettingsError(_not_running("queue", "RAGLLAVA_REDIS_URL", self.home))
        return self.redis_url.get_secret_value()


def _with_driver(url: str) -> str:
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises ValueError for a port that is not a number
    except ValueError:
        return False
    return "://" in value and parts.scheme in schemes


def _not_running(service: str, variable: str, home: Path) -> str:
    return (
        f"no {service} runs in the home {home}: start the embedded services with `ragllava up`, or set {variable}; "
        "if they run from another home, set RAGLLAVA_HOME to it"
    )


def load_settings(**overrides: Any) -> Settings:
    """Settings from overrides, then the environment, then the files of RAGLLAVA_SETTINGS_DIR, then ragllava.toml, then
    the embedded services that are running.

    Raises SettingsError with one sentence that names the variable, or the file and its line's name.
    """
    _refuse_unknown(os.environ)
    from_file: dict[str, Any] = {}
    file: Path | None = None
    try:
        file = _home(overrides) / SETTINGS_FILE
        folder, in_folder = _settings_in_folder(overrides.get("settings_dir") or _in_environment("settings_dir"))
        from_file = {
            name: value
            for name, value in read_settings_file(file).items()
            if name not in overrides and name not in in_folder and not _in_environment(name)
        }
        overrides |= {"_secrets_dir": folder} if folder else {}  # pydantic-settings reads its files
        first = Settings(**(from_file | overrides))
        embedded = read_services(first.services_file)
        if first.database_url is not None:  # then the embedded database is not the one that is used
            embedded.pop("database_owner_url", None)
            embedded.pop("api_database_url", None)
        if first.s3_endpoint is not None:
            embedded.pop("s3_socket", None)
        missing = {name: value for name, value in embedded.items() if getattr(first, name) is None}
        return Settings(**(from_file | overrides | missing)) if missing else first
    except ValidationError as error:
        raise SettingsError(_sentence(error, file, from_file)) from None


def _home(overrides: Mapping[str, Any]) -> Path:
    """The home, before any other setting is read."""
    given = overrides.get("home") or _in_environment("home")
    return Path(given).expanduser().absolute() if given else default_home()


def origins(settings: Settings) -> dict[str, str]:
    """Where the value of each field comes from: `environment`, `settings folder`, `ragllava.toml`, `embedded service`
    or `default`.

    `settings` come from `load_settings` without overrides. A file that cannot be read counts as empty.
    """
    try:
        in_file = read_settings_file(settings.settings_file)
    except SettingsError:
        in_file = {}
    _, in_folder = _settings_in_folder(settings.settings_dir)

    def origin(name: str) -> str:
        if _in_environment(name):
            return "environment"
        if name in in_folder:
            return "settings folder"
        if name in in_file:
            return SETTINGS_FILE
        return "embedded service" if name in settings.model_fields_set else "default"

    return {name: origin(name) for name in Settings.model_fields}


def read_settings_file(path: Path) -> dict[str, Any]:
    """The fields that ragllava.toml sets, with values as written; {} without the file.

    Raises SettingsError for a file that is not valid TOML, a field that does not exist, and `home`, which says where
    the file is.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(_unreadable(path, error)) from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f'{path} is not valid TOML: {error}; texts need quotes, as in profile = "base"') from None
    names = [name for name in Settings.model_fields if name not in _BY_VARIABLE]
    for name in values:
        if name in _BY_VARIABLE:
            raise SettingsError(f"{path}: {name} cannot be set here; set the variable {variable_of(name)}")
        if name not in names:
            close = difflib.get_close_matches(name.lower().removeprefix(_PREFIX.lower()), names, n=1, cutoff=0.8)
            guess = f"did you mean {close[0]}? " if close else ""
            raise SettingsError(f"{path}: unknown setting {name}; {guess}`ragllava settings` lists all settings")
    return values


def _in_environment(name: str) -> str | None:
    """What a variable sets this field to; None without one. Variables are not case-sensitive, and an empty one counts
    as none."""
    values = (value for variable, value in os.environ.items() if variable.upper() == variable_of(name))
    return next(filter(None, values), None)


def _settings_in_folder(folder: str | Path | None) -> tuple[Path | None, set[str]]:
    """The folder of settings, and the fields that its files set. Raises SettingsError for a folder or a file of it that
    cannot be read, and for a file that is named as no setting."""
    if folder is None:
        return None, set()
    path = Path(folder).expanduser()
    if not path.is_absolute():  # the workers run in a folder of their own
        raise SettingsError(f"RAGLLAVA_SETTINGS_DIR: {path} is not an absolute path; begin it with /")
    try:
        files = [each for each in path.iterdir() if each.name.upper().startswith(_PREFIX) and each.is_file()]
    except OSError as error:
        raise SettingsError(f"RAGLLAVA_SETTINGS_DIR: {path} cannot be read: {error.strerror or error}") from None
    _refuse_unknown(file.name for file in files)
    for file in files:
        _require_readable(file, path)
    names = {file.name.upper().removeprefix(_PREFIX).lower() for file in files}
    for name in names.intersection(_BY_VARIABLE):
        raise SettingsError(f"{path}: {variable_of(name)} cannot be a file there; set the variable")
    return path, names


def _require_readable(file: Path, folder: Path) -> None:
    """Raises SettingsError for a file of the folder of settings that pydantic-settings would fail at, or pass over."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise SettingsError(f"{file} leads out of its folder, and is not followed; put the file itself there")
    try:
        file.read_text(encoding="utf-8")
    except UnicodeError:  # its own words show a part of what may be a password
        raise SettingsError(f"{file} cannot be read: it is not text in UTF-8") from None
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror or error}") from None


def _unreadable(path: Path, error: Exception) -> str:
    """Why a file of the home cannot be read, with its owner if it is another user's."""
    if not isinstance(error, PermissionError):
        return f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
    return f"{path} cannot be read ({error.strerror}){_of_owner(path)}; set RAGLLAVA_HOME to a folder of yours"


def _of_owner(path: Path) -> str:
    """`: it belongs to the user alice`; empty if the owner is not known, or it is ours."""
    for existing in (path, *path.parents):
        try:
            owner = existing.owner()
            is_ours = existing.stat().st_uid == os.geteuid()
        except (OSError, KeyError, NotImplementedError):
            continue
        return "" if is_ours else f": {existing} belongs to the user {owner}"
    return ""


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def how_to_serve_metrics(settings: Settings, host: Literal["metrics_host", "worker_metrics_host"]) -> str | None:
    """What to set before metrics, which need no key, are served at the address of this setting; None: nothing."""
    if settings.metrics_beyond_loopback or is_loopback(getattr(settings, host)):
        return None
    return (
        f"set {variable_of(host)} to 127.0.0.1, or {variable_of('metrics_beyond_loopback')}=true if only your own "
        "machines reach that address"
    )


def read_services(path: Path) -> dict[str, str]:
    """The settings of the embedded services, or {} when none were started. Raises SettingsError for a damaged file."""
    try:
        stored = dict(json.loads(path.read_text())["settings"])
        for name, value in stored.items():
            if name not in Settings.model_fields or not isinstance(value, str):
                raise ValueError(f"{name} is not a setting, or its value is not text")
        return stored
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise SettingsError(_unreadable(path, error)) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is damaged ({error}); remove it and run `ragllava up`") from None


def _refuse_unknown(names: Iterable[str]) -> None:
    """Raises SettingsError for a name that begins as that of a variable, and is none."""
    variables = [variable_of(name) for name in Settings.model_fields]
    for name in names:
        if name.startswith(_PREFIX) and name.upper() not in variables:
            close = difflib.get_close_matches(name.upper(), variables, n=1, cutoff=0.8)
            guess = f"did you mean {close[0]}? " if close else ""
            raise SettingsError(f"unknown setting {name}; {guess}`ragllava settings` lists all settings")


def _sentence(error: ValidationError, file: Path | None, from_file: Mapping[str, Any]) -> str:
    """The first mistake, with the name of its variable or its line in the file; the value is shown unless it may hold a
    password."""
    problem = error.errors()[0]
    text = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return text
    name = str(problem["loc"][0])
    field = Settings.model_fields.get(name)
    is_secret = field is None or "SecretStr" in str(field.annotation)
    where = f"{file}: {name}" if name in from_file else variable_of(name)
    return f"{where}: {text}" + ("" if is_secret else f", not {problem['input']!r}")
