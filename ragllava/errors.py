"""All errors that RagLLaVA raises on purpose.

The type decides whether a retry can help: the runner of shards retries a `retryable` error with a growing delay and
turns any other into a `failed` result at once. A message says what was attempted, on what, and what to do; users see it
unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class RagllavaError(Exception):
    """Base of all errors of RagLLaVA."""

    retryable = False


class UsageError(RagllavaError):
    """The user's request is invalid: wrong option, unknown name, missing file."""


class NotFound(UsageError):
    """There is nothing of this name or id, or the caller may not see it."""


class Conflict(UsageError):
    """The state of a thing does not allow the change: a job that has ended cannot be cancelled."""


class KeyReused(UsageError):
    """An idempotency key was used before, for another content."""


class NotAuthenticated(UsageError):
    """The caller has no valid key or token."""


class AccessDenied(UsageError):
    """The role of the caller does not allow it, or the database refuses it to the role of the HTTP API."""


class TooLarge(UsageError):
    """What was sent is larger than a published limit."""


class QuotaExceeded(RagllavaError):
    """A quota or a rate of the caller is used up; it is free again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        """`retry_after_s` is what the header retry-after says, in seconds."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AnswerTimeout(UsageError):
    """A question that somebody waits for has no answer in time; its job goes on."""


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


class ObjectTooLarge(UsageError):
    """An object of a foreign bucket has more bytes than are read."""


class ObjectCorrupt(RagllavaError):
    """The bytes under a content key do not have the hash in the key."""


class RejectionClass(StrEnum):
    """What is the matter with a file that is rejected: the label of a metric."""

    DAMAGED = "damaged"
    TOO_LARGE = "too_large"  # bytes, pixels, pages, or what decoding it takes
    NO_PICTURE = "no_picture"
    UNSUPPORTED = "unsupported"  # a format or a packing that is not read, or that is encrypted
    UNREADABLE = "unreadable"  # missing, forbidden, or no regular file
    PACKED = "packed"  # a member that a zip or tar file should not have
    OTHER = "other"  # what the object store refuses


class Rejection(NamedTuple):
    """Why a file is rejected: its class, and one sentence for the user."""

    rejection_class: RejectionClass
    reason: str


class ImageRejected(RagllavaError):
    """The bytes are not an accepted picture; the message is the reason shown to the user."""

    def __init__(self, rejection_class: RejectionClass, reason: str) -> None:
        """Whoever finds the fault names its class: the reason may be put in other words at any time."""
        super().__init__(reason)
        self.rejection = Rejection(rejection_class, reason)


class DecoderUnavailable(RagllavaError):
    """The child process that decodes pictures cannot be started."""

    retryable = True


class FetchNeeded(RagllavaError):
    """A picture of another host has to be fetched, where the caller said that nothing may be (remote_pictures.py)."""


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
