"""Read the bytes of listed files from disk, packed files and buckets; a file that cannot be read is a rejection."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from ragllava.errors import ImageRejected, ObjectMissing, ObjectTooLarge, RejectionClass, UsageError
from ragllava.imaging.decode import MAX_BYTES, TOO_MANY_BYTES
from ragllava.stages.ingest.files import PackedScheme, open_regular, why_unreadable
from ragllava.stages.ingest.packed import read_capped, read_members
from ragllava.stages.ingest.uris import parse_uri

DISAPPEARED = "it disappeared since it was listed"

OpenObject = Callable[[str, str], bytes]
ReadFile = tuple[int, bytes | ImageRejected]  # the number of a file, and its bytes or the rejection


def read_sources(files: Sequence[tuple[int, str]], open_object: OpenObject) -> Iterator[ReadFile]:
    """Yield (number, bytes or rejection) for each (number, uri) of `files`.

    In the order of `files`, but consecutive members of one zip or tar file come in that file's order, because it
    is read once. `open_object(bucket, key)` reads from the object store; ObjectMissing and UsageError reject that
    file, ServiceUnavailable is passed on, because a retry can help. At most MAX_BYTES are read of a file.
    """
    for package, group in itertools.groupby(files, key=lambda file: _package(file[1])):
        if package is None:
            for number, uri in group:
                yield number, _read_single(uri, open_object)
        else:
            yield from _read_package(list(group))


def _package(uri: str) -> str | None:
    """The part of a uri that identifies the zip or tar file, None for other uris."""
    return uri.partition("!")[0] if uri.startswith(("zip://", "tar://")) and "!" in uri else None


def _read_single(uri: str, open_object: OpenObject) -> bytes | ImageRejected:
    try:
        location = parse_uri(uri)
        if location.scheme == "s3":
            data = open_object(location.path, location.member)
            return data if len(data) <= MAX_BYTES else ImageRejected(*TOO_MANY_BYTES)
        with open_regular(location.path) as file:
            return read_capped(file)
    except ImageRejected as rejection:
        return rejection
    except ObjectMissing:
        return ImageRejected(RejectionClass.UNREADABLE, DISAPPEARED)
    except UsageError as error:
        is_too_large = isinstance(error, ObjectTooLarge)
        return ImageRejected(RejectionClass.TOO_LARGE if is_too_large else RejectionClass.OTHER, str(error))
    except OSError as error:
        return ImageRejected(*why_unreadable(error))


def _read_package(files: Sequence[tuple[int, str]]) -> Iterator[ReadFile]:
    """The members of one zip or tar file."""
    numbers: dict[str, list[int]] = {}
    for number, uri in files:
        numbers.setdefault(parse_uri(uri).member, []).append(number)
    package = parse_uri(files[0][1])
    scheme: PackedScheme = "zip" if package.scheme == "zip" else "tar"
    rejection = ImageRejected(RejectionClass.UNREADABLE, "it disappeared from its packed file since it was listed")
    try:
        for name, content in read_members(scheme, package.path, numbers.keys()):
            for number in numbers.pop(name):
                yield number, content
    except ImageRejected as error:
        rejection = error
    for number in itertools.chain.from_iterable(numbers.values()):
        yield number, rejection
