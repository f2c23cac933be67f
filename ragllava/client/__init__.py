"""The Python client: everything that the commands do, for programs, in one group of methods for each kind of thing.

    with Client() as client:
        job = client.questions.submit(Path("questions.jsonl"), archive="holidays")
        client.jobs.wait(job.job_id)
        for row in client.questions.results(job.job_id): ...

Every submit writes to Postgres first and then notifies the workers, so it succeeds when the queue cannot be reached:
the workers find the job at their next tick. Methods take and return plain values and frozen records, and raise
subclasses of RagllavaError.
"""

from __future__ import annotations

from ragllava.client.access.access import Access
from ragllava.client.access.batches import Batches, BatchRequest, BatchView
from ragllava.client.access.files import Files
from ragllava.client.access.provider import Arrival, Departure
from ragllava.client.archives import Archives, IngestJob
from ragllava.client.backups import Backups
from ragllava.client.checking import Checked
from ragllava.client.connections import Connections
from ragllava.client.health import Check, Health, Severity
from ragllava.client.jobs import Jobs, is_success, pause_between_views, seconds_left
from ragllava.client.learning.comparison import Comparison
from ragllava.client.learning.models import Models
from ragllava.client.learning.previews import ChangedExample, ChangedExamples, ThresholdCurve
from ragllava.client.learning.reviewing import Reviewing, ReviewProgress
from ragllava.client.learning.reviews import Reviews
from ragllava.client.metrics import ALL_METRICS, Metrics
from ragllava.client.pictures import Pictures
from ragllava.client.questions import Questions, SavedResults
from ragllava.client.requests import Document, Requests
from ragllava.client.schedules import Schedules, local_time
from ragllava.client.system import System
from ragllava.client.webhooks import Webhooks
from ragllava.feedback import NoisyReason, NoisyState, Verdict
from ragllava.jobs.figures import Metric, Reading
from ragllava.jobs.queues import QueueView
from ragllava.jobs.states import JobState
from ragllava.jobs.views import JobView
from ragllava.records import (
    AnswerOptions,
    Depth,
    FoundImage,
    JobKind,
    MailingState,
    Priority,
    Retrieval,
    Role,
    ScheduleAction,
    Selection,
    TaskName,
)
from ragllava.settings import Settings
from ragllava.stages.answer.estimating import Estimate, EstimateOutcome
from ragllava.stages.answer.question_files import asked_in
from ragllava.stages.answer.remote_pictures import fetching_nothing
from ragllava.stages.backup.backup import Made as MadeBackup
from ragllava.stages.backup.restore import Restored as RestoredBackup
from ragllava.stages.backup.verify import Verified as VerifiedBackup
from ragllava.stages.batches.bodies import (
    CHAT,
    RESPONSES,
    answer_body,
    completion_chunks,
    response_events,
    response_usage,
)
from ragllava.stages.batches.submit import MODEL, archive_named, options_of
from ragllava.stages.buckets.scanning import ScanReport
from ragllava.stages.buckets.watched_folder import WatchedFolder
from ragllava.stages.erasing.remove import Removal
from ragllava.stages.feedback.labels import QuestionView, StoredFeedback
from ragllava.stages.feedback.reviewing import Opinion, SavedReview
from ragllava.stages.ingest.captions import Columns
from ragllava.stages.maintenance.schedules import ScheduleRequest
from ragllava.stages.pictures.duplicates import Duplicates
from ragllava.stages.reindex.stage import ReindexRequest
from ragllava.stages.requests.scoring import Scores
from ragllava.stages.results.finalize import ResultPage
from ragllava.stages.results.results import ResultRow
from ragllava.stores.access.keys import AccessRole, KeyView, Limits, NewKey, Principal
from ragllava.stores.access.tenancy import acting
from ragllava.stores.access.uploads import Page, Upload
from ragllava.stores.access.usage import AuditEntry, AuditView
from ragllava.stores.access.webhooks import WebhookView
from ragllava.stores.archives.archive import Archive, ArchiveSummary, ListedImage
from ragllava.stores.archives.image_lists import ImageOrder, ImageState, ListKey, ListOptions, Marks, StoredContent
from ragllava.stores.archives.indexes import IndexDetails
from ragllava.stores.archives.reindex_items import ReindexingView
from ragllava.stores.buckets.bindings import BindingRole, BindingView
from ragllava.stores.buckets.held_removals import HeldRemoval
from ragllava.stores.jobs.answered import AnsweredQuestion
from ragllava.stores.jobs.picture_views import PictureView
from ragllava.stores.jobs.refreshes import RefreshView
from ragllava.stores.jobs.result_pages import ResultFilter, ResultQuery
from ragllava.stores.jobs.workers import WorkerView
from ragllava.stores.learning.noisy import NoisyView
from ragllava.stores.learning.promotions import Promotion
from ragllava.stores.learning.registry import VersionView
from ragllava.stores.learning.review_counts import QueueCounts, ReviewTotals
from ragllava.stores.learning.reviewing import QueueFilter, SaidOpinion
from ragllava.stores.learning.trainings import StepLoss, TrainingView
from ragllava.stores.maintenance.erasures import ErasureView
from ragllava.stores.maintenance.faults import Fault
from ragllava.stores.maintenance.notices import MailingView
from ragllava.stores.maintenance.schedules import ScheduleView
from ragllava.stores.maintenance.tasks import TaskView
from ragllava.training.request import TrainingPlan, TrainingRequest

__all__ = [
    "ALL_METRICS",
    "CHAT",
    "MODEL",
    "RESPONSES",
    "AccessRole",
    "AnswerOptions",
    "AnsweredQuestion",
    "Archive",
    "ArchiveSummary",
    "Arrival",
    "AuditEntry",
    "AuditView",
    "BatchRequest",
    "BatchView",
    "BindingRole",
    "BindingView",
    "ChangedExample",
    "ChangedExamples",
    "Check",
    "Checked",
    "Client",
    "Columns",
    "Comparison",
    "Departure",
    "Depth",
    "Document",
    "Duplicates",
    "ErasureView",
    "Estimate",
    "EstimateOutcome",
    "Fault",
    "FoundImage",
    "Health",
    "HeldRemoval",
    "ImageOrder",
    "ImageState",
    "IndexDetails",
    "IngestJob",
    "JobKind",
    "JobState",
    "JobView",
    "KeyView",
    "Limits",
    "ListKey",
    "ListOptions",
    "ListedImage",
    "MadeBackup",
    "MailingState",
    "MailingView",
    "Marks",
    "Metric",
    "Metrics",
    "NewKey",
    "NoisyReason",
    "NoisyState",
    "NoisyView",
    "Opinion",
    "Page",
    "PictureView",
    "Principal",
    "Priority",
    "Promotion",
    "QuestionView",
    "QueueCounts",
    "QueueFilter",
    "QueueView",
    "Reading",
    "RefreshView",
    "ReindexRequest",
    "ReindexingView",
    "Removal",
    "RestoredBackup",
    "ResultFilter",
    "ResultPage",
    "ResultQuery",
    "ResultRow",
    "Retrieval",
    "ReviewProgress",
    "ReviewTotals",
    "Role",
    "SaidOpinion",
    "SavedResults",
    "SavedReview",
    "ScanReport",
    "ScheduleAction",
    "ScheduleRequest",
    "ScheduleView",
    "Scores",
    "Selection",
    "Settings",
    "Severity",
    "StepLoss",
    "StoredContent",
    "StoredFeedback",
    "TaskName",
    "TaskView",
    "ThresholdCurve",
    "TrainingPlan",
    "TrainingRequest",
    "TrainingView",
    "Upload",
    "Verdict",
    "VerifiedBackup",
    "VersionView",
    "WatchedFolder",
    "WebhookView",
    "WorkerView",
    "acting",
    "answer_body",
    "archive_named",
    "asked_in",
    "completion_chunks",
    "fetching_nothing",
    "is_success",
    "local_time",
    "options_of",
    "pause_between_views",
    "response_events",
    "response_usage",
    "seconds_left",
]


class Client(Connections):
    """Talks to Postgres and the object store, and notifies the workers through the queue. See Connections."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        name: str = "ragllava client",
        pool_size: int = 3,
        for_tenants: bool = False,
    ) -> None:
        """As Connections."""
        super().__init__(settings, name=name, pool_size=pool_size, for_tenants=for_tenants)
        self.archives = Archives(self)
        self.questions = Questions(self)
        self.jobs = Jobs(self)
        self.pictures = Pictures(self)
        self.requests = Requests(self)
        self.reviews = Reviews(self)
        self.reviewing = Reviewing(self)
        self.models = Models(self)
        self.schedules = Schedules(self)
        self.system = System(self)
        self.backups = Backups(self)
        self.health = Health(self)
        self.metrics = Metrics(self)
        self.webhooks = Webhooks(self)
        self.access = Access(self)
        self.files = Files(self)
        self.batches = Batches(self)
