"""Archives: the files, folders and buckets that feed them, and their contents."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ragllava.client.connections import Connections, Namespace, forwarded, listed_paths
from ragllava.client.removals import remover
from ragllava.errors import Conflict, UsageError
from ragllava.jobs import views
from ragllava.records import AnswerOptions, FoundImage, Retrieval
from ragllava.settings import read_services
from ragllava.stages.answer.cautions import open_ingests, strange_pictures
from ragllava.stages.buckets import one_off
from ragllava.stages.buckets.binding import bind_archive, read_address, require_open_to_api, unbind_archive
from ragllava.stages.buckets.scanning import ScanReport, scan
from ragllava.stages.buckets.watched_folder import FolderChanges, WatchedFolder
from ragllava.stages.erasing.remove import Removal, rename_archive
from ragllava.stages.ingest.captions import Captions, Columns, read_captions
from ragllava.stages.ingest.listing import Listing
from ragllava.stages.ingest.sources import list_sources
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.ingest.upload import OnUpload, upload_files
from ragllava.stages.reindex.gaps import Gap, find_gaps
from ragllava.stages.reindex.stage import ReindexRequest, submit_reindex, submit_switch
from ragllava.stores.archives import indexes
from ragllava.stores.archives.archive import ArchiveSummary, archive_summary, create_archive, get_archive, list_archives
from ragllava.stores.archives.indexes import IndexDetails
from ragllava.stores.archives.ingest_files import RejectedFile, noted_files, rejected_files
from ragllava.stores.buckets import held_removals
from ragllava.stores.buckets.bindings import Binding, BindingRole, BindingView, view_bindings
from ragllava.stores.buckets.held_removals import HeldRemoval
from ragllava.stores.jobs.picture_views import PictureView, view_picture
from ragllava.stores.jobs.workers import list_workers

_PACKED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
MAX_GIVEN = 500  # characters of the paths of an ingest job, which are for people


@dataclass(frozen=True, slots=True)
class IngestJob:
    """A queued ingest job of `total` files, and what became of the captions.

    `captions` are those of the caption file, `unused_captions` those of them that fit no file, or, as the ones that
    `ambiguous_captions` repeats, several files equally well. `beside` has the counts and remarks of the listing, also
    on caption files beside the pictures.
    """

    job_id: int
    total: int
    captions: int
    unused_captions: tuple[str, ...]
    ambiguous_captions: tuple[str, ...]
    beside: Listing

    @property
    def lost_captions(self) -> int:
        """How many captions of caption files fit no file."""
        return len(self.unused_captions) + self.beside.without_file

    @property
    def most_captions_are_lost(self) -> bool:
        """Whether more captions fit no file than fit one: they are probably for other pictures."""
        return self.lost_captions * 2 > self.captions + self.beside.listed_captions


class Indexes(Namespace):
    """Indexes of archives: building, active or retired."""

    get = forwarded(indexes.find_index)
    drop = forwarded(indexes.drop_index)

    def switch(self, index_id: int) -> int:
        """Queue a job that adds what this index lacks and then answers from it; returns the job. Raises UsageError."""
        return self._queue(submit_switch, index_id)

    def list(self, archive: str | None = None) -> list[IndexDetails]:
        """The indexes of an archive, or of all archives, by archive and age. Raises UsageError."""
        if archive is None:
            return self._do(indexes.all_indexes)
        return self._of_archive(archive, indexes.all_indexes)


class Archives(Namespace):
    """Archives, the buckets bound to them and the folders that they follow; `indexes` are their indexes."""

    def __init__(self, connections: Connections) -> None:
        """On the client's connections."""
        super().__init__(connections)
        self.indexes = Indexes(connections)

    def ingest(  # noqa: PLR0913 - what the command takes
        self,
        paths: str | Path | Iterable[str | Path],
        archive: str,
        captions: str | Path | None = None,
        columns: Columns | None = None,
        *,
        exclude: Sequence[str] = (),
        upload: bool | None = None,
        on_upload: OnUpload = lambda done, total: None,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> IngestJob:
        """Queue the pictures under a path, or under several, for an archive, which is created if it is new.

        Files whose names match one of the shell patterns `exclude` are left out: `*.pdf`, `thumbs`, `2019/*`.
        With `upload` the files are put into the object store first; without, the ingest workers read the paths, so
        they must see them under the same names. None: as RAGLLAVA_UPLOAD_FILES says. `on_upload` is called with the
        files read so far and all of them. `name` is what the lists of jobs call it. `columns` name those of the file
        `captions`. The same key with the same files makes one job. Raises UsageError when there is no picture, or
        `captions` cannot be read.
        """
        paths, captions = listed_paths(paths), Path(captions) if captions else None
        by_picture = read_captions(captions, columns) if captions else Captions({})
        listing = Listing()
        files = list(list_sources(paths, by_picture, listing, captions_path=captions, exclude=exclude))
        listing.notes[:0] = by_picture.notes
        if not files:
            passed = f"; passed over: {listing.passed_kinds()}" if listing.passed_over else ""
            raise UsageError(f"no pictures in {', '.join(map(str, paths))}{passed}")
        if self._must_upload() if upload is None else upload:
            files = upload_files(self._connections.engine, self._connections.objects, files, on_upload)
        job_id = self._queue(
            submit_files,
            archive_name=archive,
            files=files,
            given=_given(paths),
            name=name,
            idempotency_key=idempotency_key,
        )
        unused, ambiguous = tuple(by_picture.unused()), tuple(by_picture.ambiguous())
        return IngestJob(job_id, len(files), len(by_picture), unused, ambiguous, listing)

    def ingest_prefix(
        self, address: str, archive: str, *, name: str | None = None, idempotency_key: str | None = None
    ) -> IngestJob:
        """Queue the pictures that lie below `s3://bucket/prefix/` now; later changes are the matter of `bind`.

        Raises UsageError for an invalid address and one without pictures; for tenants also for one that is neither
        bound to the archive nor opened to them by `settings.api_buckets`.
        """
        if self._connections.for_tenants and not self._do(one_off.is_bound, archive, address):
            require_open_to_api(self._connections.settings, address)
        listing = Listing()
        files = one_off.list_prefix(self._connections.objects, address, listing)
        job_id = self._queue(
            submit_files,
            archive_name=archive,
            files=files,
            given=address,
            name=name,
            idempotency_key=idempotency_key,
        )
        return IngestJob(job_id, len(files), 0, (), (), listing)

    def _must_upload(self) -> bool:
        """Whether an ingest worker may not see the files of this host."""
        choice = self._connections.settings.upload_files
        if choice != "auto":
            return choice == "always"
        here = socket.gethostname()
        return any(
            "ingest" in worker.queues and worker.state == "live" and worker.name.partition("@")[2] != here
            for worker in self._do(list_workers)
        )

    def reindex(self, request: ReindexRequest) -> int:
        """Queue a job that embeds images of an archive again; returns the job. Raises UsageError."""
        return self._queue(submit_reindex, request)

    def get(self, name: str) -> ArchiveSummary:
        """The contents of an archive in numbers; reads all its image rows. Raises UsageError for an unknown name."""
        return self._do(_summary, name)

    def rejected(self, name: str) -> list[RejectedFile]:
        """The files of an archive whose latest ingest was rejected, with the reason. Raises UsageError."""
        return self._of_archive(name, rejected_files)

    def notes(self, name: str) -> list[RejectedFile]:
        """The files of an archive that were stored with a note: cut files and documents. Raises UsageError."""
        return self._of_archive(name, noted_files)

    def cautions(self, name: str) -> list[str]:
        """What to know before trusting answers from an archive, one sentence each: it is still being ingested, or its
        pictures are of a kind that the mini models do not know. Raises UsageError for an unknown name."""
        return self._do(_cautions, name)

    def strangeness(self, name: str) -> str | None:
        """One sentence if the pictures of an archive are of a kind that its models, the mini ones, do not know.

        Reads the vectors of up to 200 pictures. Raises UsageError for an unknown name.
        """
        return self._do(_strangeness, name)

    def open_ingests(self, name: str) -> list[int]:
        """The jobs that still add pictures to an archive, oldest first. Raises UsageError for an unknown name."""
        return self._of_archive(name, open_ingests)

    def gaps(self, name: str) -> list[Gap]:
        """The images of an archive that no question can find, with the reason. Raises UsageError."""
        return self._of_archive(name, find_gaps)

    def search(
        self,
        name: str,
        text: str,
        *,
        limit: int = 20,
        retrieval: Retrieval = Retrieval.HYBRID,
        filter: dict[str, Any] | None = None,
    ) -> list[FoundImage]:
        """The images of an archive that fit `text` best, at most `limit`: the first stage alone, in this process.

        Loads the retriever, and no other model. Raises UsageError, and JobRefused when this machine's profile is not
        the archive's.
        """
        from ragllava.stages.answer.lookup import search_archive  # loads torch
        from ragllava.stages.resources import Resources

        connections, options = self._connections, AnswerOptions(limit, retrieval=retrieval, filter=filter)
        with closing(Resources(connections.settings)) as resources:
            return search_archive(connections.engine, connections.settings, resources, name, text, options)

    def picture(self, name: str, picture: str) -> PictureView:
        """What an archive knows of one image, by its id or source: caption, metadata, indexes, answers that rest on it.

        Raises UsageError when there is no such image, or several of that source.
        """
        return self._do(view_picture, name, picture)

    def ensure_bucket(self, address: str) -> bool:
        """Create the bucket of `s3://bucket/prefix/` if it is missing in the embedded store; whether it was created.

        In a store that is given by address nothing is created: there its owner does that. Raises UsageError for an
        invalid address.
        """
        bucket, _ = read_address(address)
        settings = self._connections.settings
        embedded = read_services(settings.services_file).get("s3_endpoint")
        return embedded == settings.s3_endpoint and self._connections.objects.make_bucket(bucket)

    def bind(self, archive: str, address: str, role: BindingRole, options: Mapping[str, Any] | None = None) -> Binding:
        """Bind `s3://bucket/prefix/` to an archive, which is created if it is new.

        Options of an inbox: `outbox` (an address, required), `skip_invalid` (default true), `answer`
        (AnswerOptions.as_json()), `priority` of its jobs (low, normal or high). Raises UsageError for an invalid
        address, a bucket that does not exist or is RagLLaVA's own, and an overlap with another binding; for tenants
        also for an address that `settings.api_buckets` does not open to them.
        """
        if self._connections.for_tenants:
            outbox = (options or {}).get("outbox")
            for given in (address, outbox) if outbox else (address,):
                require_open_to_api(self._connections.settings, given)
        return bind_archive(
            self._connections.engine, self._connections.objects, archive, address, role, dict(options or {})
        )

    def unbind(self, archive: str, address: str) -> Binding:
        """Remove a binding; the images that it brought stay. Raises UsageError when it is not bound to this archive."""
        return self._do(unbind_archive, archive, address)

    def bindings(self, archive: str) -> list[BindingView]:
        """The parts of buckets that feed an archive, with counts of their objects. Raises UsageError."""
        return self._of_archive(archive, view_bindings)

    def scan(self, archive: str, *, allow_removals: bool = False, retry_refused: bool = False) -> list[ScanReport]:
        """Compare the buckets bound to an archive with what is stored of them, and repair the differences.

        Pictures that are gone stay if they are more than `settings.removals_share` of a bucket's, unless
        `allow_removals` is set. With `retry_refused`, objects that were refused are tried again although they have not
        changed.

        Raises UsageError for an archive without a binding and for a bucket that does not exist, ServiceUnavailable.
        """
        connections = self._connections
        reports = scan(
            connections.engine,
            connections.settings,
            connections.objects,
            archive,
            allow_removals=allow_removals,
            retry_refused=retry_refused,
        )
        self._dispatch()
        return reports

    def follow(self, watched: WatchedFolder) -> FolderChanges:
        """Bring an archive up to date with a folder; `watched` remembers the files of earlier calls.

        Raises UsageError when the folder is gone, or its caption file cannot be read.
        """
        changes = watched.compare(self._connections.engine, self._connections.settings)
        if changes.job_id is not None:
            self._dispatch()
        return changes

    def has_settled(self, watched: WatchedFolder) -> bool:
        """True once after the ingest jobs of `follow` have ended; what changed meanwhile can then be compared."""
        return watched.jobs_ended(self._connections.engine)

    def create(self, name: str) -> None:
        """Create an empty archive; its first ingest would do so, too. Raises UsageError, Conflict for a taken name."""
        if not self._do(create_archive, name):
            raise Conflict(f"there is an archive {name!r} already")

    def rename(self, name: str, new: str) -> None:
        """Give an archive another name; all that belongs to it stays with it. Raises UsageError.

        A running `ragllava watch` keeps to the name that it was given.
        """
        self._do(rename_archive, name, new)

    def remove(self, name: str, *, dry_run: bool = False) -> Removal:
        """Erase an archive with its pictures, indexes, jobs, labels, bindings and schedules; returns what was erased.

        With `dry_run`, returns what would be. Trainings and their model versions stay. Raises UsageError for an unknown
        archive, and while it has open jobs.
        """
        with remover(self._connections) as removing:
            return removing.archive(name, dry_run=dry_run)

    def remove_pictures(self, name: str, pictures: Sequence[str], *, dry_run: bool = False) -> Removal:
        """Erase pictures of an archive, by id or source, from every place where they are stored.

        Returns what was erased, or would be, and what keeps a copy. Answers that rest on them keep their texts. Raises
        UsageError for an unknown picture, for a source that several have, and while a job ingests one.
        """
        with remover(self._connections) as removing:
            return removing.pictures(name, pictures, dry_run=dry_run)

    def held_removals(self) -> list[HeldRemoval]:
        """Folders and buckets that lost so many pictures at once that these were not retired without being asked."""
        return self._do(held_removals.list_held)

    listed = forwarded(list_archives)

    def names(self) -> Sequence[str]:
        """The names of all archives, in order."""
        return [archive.name for archive in self.listed()]

    def list(self) -> list[ArchiveSummary]:
        """All archives by name, each as `get` returns it."""
        return self._do(_summaries)


def _given(paths: Sequence[Path]) -> str:
    """The paths of an ingest job for people. Single pictures are only counted: their names go with them."""
    single = [path for path in paths if path.is_file() and path.suffix.lower() not in _PACKED]
    names = [str(path) for path in paths if path not in single]
    if single:
        names.append("1 file" if len(single) == 1 else f"{len(single)} files")
    return ", ".join(names)[:MAX_GIVEN]


def _cautions(connection: Connection, name: str) -> list[str]:
    archive = get_archive(connection, name)
    cautions = []
    for job_id in open_ingests(connection, archive.archive_id):
        progress = views.view(connection, job_id).progress
        if progress.total and progress.done >= progress.total:
            continue  # the pictures are there; workers note it in answers until the job has ended
        cautions.append(
            f"job {job_id} still adds pictures to {name} ({progress.done} of {progress.total} files are done), and "
            "answers miss those that are not there yet; `ragllava submit` waits for them with --after-ingest"
        )
    strange = strange_pictures(connection, archive)
    return [*cautions, strange] if strange else cautions


def _strangeness(connection: Connection, name: str) -> str | None:
    return strange_pictures(connection, get_archive(connection, name))


def _summary(connection: Connection, name: str) -> ArchiveSummary:
    return archive_summary(connection, get_archive(connection, name))


def _summaries(connection: Connection) -> list[ArchiveSummary]:
    return [archive_summary(connection, archive) for archive in list_archives(connection)]
