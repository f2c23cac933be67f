"""Every error that RagLLaVA raises on purpose, on one page.

The type says whether a retry can help: `retryable` is read by the runner of shards, which tries a retryable
error again with a growing delay and turns any other into a `failed` result at once. A message says what was
attempted, on which thing, and what to do; it is shown to people as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass


class RagllavaError(Exception):
    """Base of all our errors."""

    retryable = False


class UsageError(RagllavaError):
    """The person asked for something that cannot be done as said: wrong option, unknown name, missing file."""


class SettingsError(UsageError):
    """A setting is missing, unknown or contradicts another."""


class AlreadyRunning(UsageError):
    """Another process runs the embedded services of this home."""


class ServiceUnavailable(RagllavaError):
    """Postgres, Redis, the object store or the endpoint of a model did not answer; it may in a moment."""

    retryable = True


class ObjectMissing(RagllavaError):
    """The object store answered that the key does not exist: a row names what is not there."""


class ObjectCorrupt(RagllavaError):
    """The bytes under a content key do not have the hash that the key promises."""


class ImageRejected(RagllavaError):
    """The bytes are no picture that we accept; the message is the reason shown to the user."""


class DecoderUnavailable(RagllavaError):
    """The child process that decodes pictures cannot be started; no picture is to blame."""

    retryable = True


class ModelUnavailable(RagllavaError):
    """A model cannot be loaded: not on this machine, wrong format, or forbidden content."""


class BlobDeleted(RagllavaError):
    """The sweep removed a blob between its upload and its first reference; announce and upload it again."""

    retryable = True


class IndexUnusable(RagllavaError):
    """The vectors of the index have another number of dimensions than those given."""


class IndexGone(IndexUnusable):
    """The index was dropped; looking again finds the one that took its place."""

    retryable = True


class ScoreRejected(RagllavaError):
    """A model returned something that cannot be a score (NaN, no image token in the prompt)."""


class DeviceOutOfMemory(RagllavaError):
    """The device ran out of memory even for the smallest batch."""

    retryable = True


class DeviceLost(RagllavaError):
    """The device is in a state that only a new process can leave (a CUDA error that is no lack of memory)."""

    retryable = True


class TrainingFailed(RagllavaError):
    """The processes of a training ended without a result."""


class ArchiveChanged(RagllavaError):
    """What was looked up is no longer so; looking again helps."""

    retryable = True


class LeaseLost(RagllavaError):
    """Another worker owns this shard by now; whatever we computed must not be written."""


class ShardInterrupted(RagllavaError):
    """The worker is shutting down, or the job was cancelled or paused: stop at the next sub-batch."""


class JobRefused(RagllavaError):
    """The job cannot be done on this system as it stands; all of it ends with this reason."""


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
    """An input file has invalid lines; nothing of it was submitted."""

    def __init__(self, name: str, errors: list[LineError]) -> None:
        """`name` is the file as the user called it; `errors` is never empty."""
        self.errors = errors
        first = errors[0]
        where = f"{name}, line {first.line}" if first.line else name
        more = f" ({len(errors) - 1} more invalid lines)" if len(errors) > 1 else ""
        super().__init__(f"{where}: {first.message} [{first.code}]{more}")
