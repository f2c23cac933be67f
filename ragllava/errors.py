"""All errors that RagLLaVA raises on purpose.

The type decides whether a retry can help: the runner of shards retries a `retryable` error with a growing delay and
turns any other into a `failed` result at once. A message says what was attempted, on what, and what to do; users see it
unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass


class RagllavaError(Exception):
    """Base of all errors of RagLLaVA."""

    retryable = False


class UsageError(RagllavaError):
    """The user's request is invalid: wrong option, unknown name, missing file."""


class SettingsError(UsageError):
    """A setting is missing, unknown or contradicts another."""


class SchemaMismatch(UsageError):
    """The tables of the database are not those of this version."""


class AlreadyRunning(UsageError):
    """Another process runs the embedded services of this home."""


class ServiceUnavailable(RagllavaError):
    """Postgres, Redis, the object store or the endpoint of a model did not answer; it may soon."""

    retryable = True


class ObjectMissing(RagllavaError):
    """The object store has no object under a key that a row names."""


class ObjectRefused(UsageError):
    """The object store never accepts this request: a key that is too long, a name that S3 does not allow."""


class ObjectCorrupt(RagllavaError):
    """The bytes under a content key do not have the hash in the key."""


class ImageRejected(RagllavaError):
    """The bytes are not an accepted picture; the message is the reason shown to the user."""


class DecoderUnavailable(RagllavaError):
    """The child process that decodes pictures cannot be started."""

    retryable = True


class ModelUnavailable(RagllavaError):
    """A model cannot be loaded: not on this machine, wrong format, or forbidden content."""


class BlobDeleted(RagllavaError):
    """gc removed a blob between its upload and its first reference; announce and upload it again."""

    retryable = True


class IndexUnusable(RagllavaError):
    """The vectors of the index have another number of dimensions than those given."""


class IndexGone(IndexUnusable):
    """The index was dropped; a retry uses the index that replaced it."""

    retryable = True


class ScoreRejected(RagllavaError):
    """A model returned something that cannot be a score (NaN, no image token in the prompt)."""


class DeviceOutOfMemory(RagllavaError):
    """The device ran out of memory even for the smallest batch."""

    retryable = True


class DeviceLost(RagllavaError):
    """The device is unusable until the process is restarted (a CUDA error other than a lack of memory)."""

    retryable = True


class TrainingFailed(RagllavaError):
    """The processes of a training ended without a result."""


class ArchiveChanged(RagllavaError):
    """The archive has changed since it was read; a retry reads it again."""

    retryable = True


class LeaseLost(RagllavaError):
    """Another worker owns this shard now; the results must not be written."""


class ShardInterrupted(RagllavaError):
    """The worker is shutting down, or the job was cancelled or paused: stop at the next sub-batch."""


class JobRefused(RagllavaError):
    """The job cannot be done on this system; it ends with this reason."""


@dataclass(frozen=True, slots=True)
class LineError:
    """One invalid line of an input file, in the shape of OpenAI's batch validation errors.

    `line` counts from 1 in the file as a text editor shows it (for Parquet: the row); 0 means the whole file.
    """

    code: str
    line: int
    message: str
    custom_id: str | None = None


class InvalidInput(UsageError):
    """An input file has invalid lines; nothing was submitted."""

    def __init__(self, name: str, errors: list[LineError]) -> None:
        """`name` is the file as named by the user; `errors` is never empty."""
        self.errors = errors
        first = errors[0]
        where = f"{name}, line {first.line}" if first.line else name
        more = f" ({len(errors) - 1} more invalid lines)" if len(errors) > 1 else ""
        super().__init__(f"{where}: {first.message} [{first.code}]{more}")
