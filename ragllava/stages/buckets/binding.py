"""Bind parts of buckets to archives: parse their addresses, and make the checks that need the object store."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import UsageError
from ragllava.json_records import to_json
from ragllava.records import PRIORITIES
from ragllava.settings import Settings
from ragllava.stages.answer.submit import as_options, check_options
from ragllava.stores.archives import archive
from ragllava.stores.buckets import bindings, held_removals
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[^\x00-\x1f]*))?")


def read_address(address: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix/`. A prefix names a folder, so a missing slash at its end is added.

    Raises UsageError for anything else.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(f"{address!r} is not an address of the form s3://bucket/prefix/")
    prefix = (match["prefix"] or "").lstrip("/")
    return match["bucket"], prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def bind_archive(
    engine: Engine, objects: ObjectStore, archive_name: str, address: str, role: BindingRole, options: dict[str, Any]
) -> Binding:
    """Bind a part of a bucket to an archive, which is created if it is new. An inbox needs the option `outbox`.

    Raises UsageError for an invalid address, a missing bucket, RagLLaVA's own bucket, and an overlap.
    """
    bucket, prefix = read_address(address)
    if "answer" in options:
        options = options | {"answer": to_json(check_options(as_options(options["answer"])))}
    if role is BindingRole.INBOX:
        if not options.get("outbox"):
            raise UsageError("an inbox needs an outbox for its results: give --outbox s3://bucket/prefix/")
        outbox, folder = read_address(options["outbox"])
        options = options | {"outbox": f"s3://{outbox}/{folder}"}
        if options.get("priority", "normal") not in PRIORITIES:
            raise UsageError(f"priority must be {', '.join(PRIORITIES)}, not {options['priority']!r}")
        _require_foreign(objects, outbox)
    _require_foreign(objects, bucket)

    def work(connection: Connection) -> Binding:
        archive_id = archive.ensure_archive(connection, archive_name).archive_id
        return bindings.bind(connection, archive_id, role, bucket, prefix, options)

    return in_transaction(engine, work)


def unbind_archive(connection: Connection, archive_name: str, address: str) -> Binding:
    """Remove a binding; the archive's images stay. Raises UsageError for an address not bound to this archive."""
    bucket, prefix = read_address(address)
    archive_id = archive.get_archive(connection, archive_name).archive_id
    binding = bindings.get_binding(connection, bucket, prefix)
    if binding.archive_id != archive_id:
        raise UsageError(f"{binding.address} is bound to the archive {binding.archive}, not to {archive_name}")
    bindings.unbind(connection, binding.binding_id)
    held_removals.release(connection, archive_id, binding.address)
    return binding


def require_submittable(connection: Connection, settings: Settings, bucket: str, key: str) -> None:
    """Raises UsageError unless a message may have this object read, and its receipt written beside it.

    Whoever can write to the queue can send a message. It must not reach what else the access key of the workers can
    read: RagLLaVA's own bucket, and the buckets of others.
    """
    address = f"s3://{bucket}/{key}"
    if bucket == settings.s3_bucket:
        raise UsageError(f"{address} is in RagLLaVA's own bucket, of which nothing is submitted")
    if bindings.has_dots(key):
        raise UsageError(f"{address} has a segment `.` or `..`")
    allowed = [prefix.strip() for prefix in settings.submit_prefixes.split(",") if prefix.strip()]
    if not address.startswith(tuple(allowed)) and not bindings.covers(connection, bucket, key):
        raise UsageError(
            f"{address} is in no bucket that is bound: bind it (`ragllava archive bind`), or add it to "
            "RAGLLAVA_SUBMIT_PREFIXES of the maintenance worker"
        )


def require_open_to_api(settings: Settings, address: str) -> None:
    """Raises UsageError unless a caller of the HTTP API may bind this address.

    The access key of the workers reads more than a caller should.
    """
    bucket, prefix = read_address(address)
    allowed = [read_address(part.strip()) for part in settings.api_buckets.split(",") if part.strip()]
    is_open = any(bucket == its and prefix.startswith(folder) for its, folder in allowed)
    if not is_open or bindings.has_dots(prefix):
        raise UsageError(f"{address} is not open to the HTTP API; whoever runs it opens it in RAGLLAVA_API_BUCKETS")


def _require_foreign(objects: ObjectStore, bucket: str) -> None:
    if bucket == objects.bucket:
        raise UsageError(f"the bucket {bucket} is RagLLaVA's own; bind another one")
    if not objects.bucket_exists(bucket):
        raise UsageError(f"there is no bucket {bucket} in the object store; create it first")
