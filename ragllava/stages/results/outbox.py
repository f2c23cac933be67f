"""The outbox: where the results of question files from an inbox appear.

    <outbox>/today/questions.csv/12/results.csv     of job 12, made from inbox/today/questions.csv
    <outbox>/today/questions.csv/12/errors.jsonl
    <outbox>/today/questions.csv/12/manifest.json   written last: if it exists, the other files are complete
    <outbox>/today/questions.csv/error-<16 hex digits>.json    instead, for a file that cannot be used

Each job has its own folder, so that another version of a file, or a file of the same name in another inbox, does not
overwrite its files. Writing it again writes the same bytes under the same names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragllava.records import FileFormat
from ragllava.stores.objects import ObjectStore

LONGEST_NAME = len("9223372036854775807/results.parquet")  # of a file in the folder of a question file, in bytes

_MEDIA_TYPES = {
    ".jsonl": "application/x-ndjson",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
}


@dataclass(frozen=True, slots=True)
class Outbox:
    """Where the results of one question file go.

    `folder` is an address that ends with a slash; `source` and `etag` name the file, whose `format` the results have.
    """

    folder: str
    source: str
    etag: str
    format: FileFormat

    @property
    def version(self) -> str:
        """The address of the file and its etag: different contents have different versions."""
        return f"{self.source}#{self.etag}"

    @property
    def error_address(self) -> str:
        """The address of the file that says why the question file cannot be used."""
        return f"{self.folder}error-{hashlib.sha256(self.version.encode()).hexdigest()[:16]}.json"


def deliver(
    objects: ObjectStore, outbox: Outbox, job_id: int, files: Mapping[Path, Mapping[str, Any]], facts: dict[str, object]
) -> str:
    """Store the files of a job in the outbox and, last, their manifest; returns the folder.

    `files` has the manifest's entries of each path, `facts` those of the job. Raises ObjectMissing when there is no
    such bucket, SettingsError when the deployment's key may not write there, ServiceUnavailable.
    """
    folder = f"{outbox.folder}{job_id}/"
    for path in files:
        with path.open("rb") as stream:
            size = path.stat().st_size
            objects.put_external_stream(f"{folder}{path.name}", stream, size, _MEDIA_TYPES[path.suffix])
    manifest = {
        **facts,
        "source": outbox.source,
        "etag": outbox.etag,
        "files": {path.name: {"address": f"{folder}{path.name}", **entry} for path, entry in files.items()},
    }
    objects.put_external(f"{folder}manifest.json", json.dumps(manifest, indent=2).encode(), "application/json")
    return folder
