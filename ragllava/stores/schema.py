"""All tables, declared once (SQLAlchemy Core). `migrations/` builds the same; a test compares the two."""

from __future__ import annotations

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TSVECTOR

REVISION = "0022"  # of migrations/versions that makes these tables; a test compares the two

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def moment(name: str, *, nullable: bool = False) -> Column[object]:
    """A time with its zone: that of the insert, or NULL until something happens."""
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=None if nullable else func.now())


def key(name: str, target: str | None = None) -> Column[int]:
    """A number that the primary key contains; the row is deleted together with the row of `target`."""
    owner = [ForeignKey(target, ondelete="CASCADE")] if target else []
    return Column(name, BigInteger, *owner, primary_key=True, autoincrement=False)


def question_key() -> ForeignKeyConstraint:
    """The row belongs to a question, and is deleted together with it."""
    columns = ["job_id", "question_no"]
    return ForeignKeyConstraint(columns, [f"questions.{name}" for name in columns], ondelete="CASCADE")


archives = Table(
    "archives",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    # One row update switches the index that questions are answered from (docs/reliability.md D12).
    Column("active_index_id", BigInteger, ForeignKey("indexes.id", use_alter=True)),
    # Of the rules by which its texts were cut into words (ragllava/words.py); an older one makes them be cut again.
    Column("words_version", Integer, nullable=False, server_default=text("0")),
    moment("created_at"),
    # Pictures without a vector by reason, as the last maintenance task `gaps` counted them; NULL: it never did.
    Column("gaps", JSONB(none_as_null=True)),
)

# The object store's inventory: a row is `uploading` before its PUT and `live` in the transaction of its first
# reference, so a crash leaves an unreferenced object and never a row without its picture (docs/reliability.md D13).
blobs = Table(
    "blobs",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("state", Text, nullable=False),  # uploading, live, deleting
    Column("size_bytes", BigInteger, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("thumbnail", LargeBinary),  # 8 × 8 pixels, to find near-duplicates; NULL: not needed yet, or unreadable
    moment("updated_at"),
)

images = Table(
    "images",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("sha256", Text, ForeignKey("blobs.sha256"), nullable=False),
    Column("source", Text, nullable=False),  # the name people know it by
    Column("uri", Text, nullable=False),  # where it was read from; the same uri with new bytes replaces it
    Column("caption", Text),
    # The captions given beside the files of these bytes, by uri (archive.caption_giver); NULL: only that of `uri`.
    Column("captions", JSONB(none_as_null=True)),
    Column("metadata", JSONB(none_as_null=True)),  # all by key: `embedded`, over it the columns of the caption file
    Column("embedded", JSONB(none_as_null=True)),  # EXIF, IPTC, XMP, also the caption; NULL: they were not read yet
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("retired", Boolean, nullable=False, server_default=text("false")),
    moment("created_at"),
    moment("updated_at"),
    # The hash comes first, so that the same index answers "who refers to this blob?" when blobs are removed.
    UniqueConstraint("sha256", "archive_id"),
    Index("ix_images_archive_id_uri", "archive_id", "uri"),
    # The pages of a document, by the uri of the document (stores/archives/archive.py: pages_of).
    Index(
        "ix_images_document",
        "archive_id",
        literal_column("split_part(uri, '#page=', 1)").label("document"),
        postgresql_where=text("strpos(uri, '#page=') > 0"),
    ),
    # Several may have one name; a hash has no limit of length, as names have none.
    Index("ix_images_source", "source", postgresql_using="hash"),
    # A search leaves out the retired images, which are few.
    Index("ix_images_retired", "archive_id", postgresql_where=text("retired")),
    # Answers filters for a text (stores/archives/filtering.py): in 100,000 images, 8 ms instead of 200 to find 100.
    Index(
        "ix_images_folded_metadata",
        literal_column(
            'CAST(regexp_replace(lower(normalize(CAST(metadata AS text), NFD) COLLATE "pg_c_utf8"), '
            "'[\\u0300-\\u036f]', '', 'g') AS jsonb)"
        ).label("folded"),
        postgresql_using="gin",
        postgresql_ops={"folded": "jsonb_path_ops"},
    ),
)

# The words of an image that is not retired: of its caption (weight A), its metadata (C) and its source (D). One GIN
# index serves all archives: each word has the number of its archive before it.
image_words = Table(
    "image_words",
    metadata,
    key("image_id", "images.id"),
    Column("archive_id", BigInteger, nullable=False),
    Column("words", TSVECTOR, nullable=False),
    Column("length", REAL, nullable=False),  # how many words, each by the weight of its field
    # Without a list of pending entries, which each search would read from its beginning to its end.
    Index("ix_image_words_words", "words", postgresql_using="gin", postgresql_with={"fastupdate": "off"}),
)

# How many images of an archive have a word: the sum of its rows. Rows are added, never updated, so that two
# transactions never wait for each other; sums replace them later.
word_counts = Table(
    "word_counts",
    metadata,
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("word", Text(collation="C"), nullable=False),
    Column("images", BigInteger, nullable=False),
    Index("ix_word_counts_archive_id_word", "archive_id", "word"),
)

# Words of all archives, each with what is left of it without one of its letters: two words that differ in one letter
# share such a variant, which is how a misspelt word of a question is recognised.
vocabulary = Table(
    "vocabulary",
    metadata,
    Column("word", Text(collation="C"), primary_key=True),
    Column("variants", ARRAY(Text), nullable=False),
    Index("ix_vocabulary_variants", "variants", postgresql_using="gin", postgresql_with={"fastupdate": "off"}),
)

indexes = Table(
    "indexes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("retriever", Text, nullable=False),  # the retriever's version: name and digest of its weights
    Column("dim", Integer, nullable=False),
    Column("state", Text, nullable=False),  # building, active, retired
    Column("has_hnsw", Boolean, nullable=False, server_default=text("false")),
    Column("spec", JSONB(none_as_null=True)),  # where its retriever's files are; NULL: it is the profile's
    Column("gate", JSONB(none_as_null=True)),  # what it was measured by before questions were answered from it
    moment("created_at"),
    moment("activated_at", nullable=True),
    moment("retired_at", nullable=True),
    # One active index for an archive, promised by the database.
    Index("uq_indexes_active", "archive_id", unique=True, postgresql_where=text("state = 'active'")),
)

# Partitioned by index, one partition for each (archive, retriever): to drop an index is to drop a table, a scan
# never meets another archive's rows, and dimensions may differ between partitions (docs/reliability.md D11, D12).
embeddings = Table(
    "embeddings",
    metadata,
    key("index_id"),
    key("image_id"),
    Column("vector", HALFVEC(), nullable=False),
    postgresql_partition_by="LIST (index_id)",
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("archive_id", BigInteger, ForeignKey("archives.id")),  # NULL: a maintenance task that concerns all of them
    Column("state", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default=text("0")),  # higher goes first
    Column("spec", JSONB, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("spec_digest", Text, nullable=False),  # a reused key with another content is refused
    Column("error", Text),
    Column("result", JSONB(none_as_null=True)),  # keys of the result objects and the counts, when the job has ended
    Column("counts", JSONB(none_as_null=True)),  # inputs by outcome, when the job has ended: they are not counted again
    moment("created_at"),
    moment("started_at", nullable=True),
    moment("finished_at", nullable=True),
    Column("name", Text),  # that a person gave it
    Column("owner", Text),  # who queued it, as user@machine; NULL: not known
    Column("counted", JSONB(none_as_null=True)),  # of a retried job: the outcomes that `totals` has already
    moment("deadline_at", nullable=True),  # what has no outcome by then is expired
    Column("max_gpu_s", Float),  # that workers may be busy with it, all together; what is left then is expired
    Column("estimate", JSONB(none_as_null=True)),  # what was expected when it was made (stages/answer/estimating.py)
    Column("timing", JSONB(none_as_null=True)),  # what came out, when it ended first (jobs/closing.py)
    # Of a job with a budget: the sum of `busy_s` of its shards, so that no look at the budget reads them.
    Column("busy_s", Float, nullable=False, server_default=text("0")),
    Column("trace", Text),  # the W3C trace context of who asked for it; NULL: not traced (ragllava/tracing.py)
    # Open jobs are few among many: dispatch and reap look only at them.
    Index("ix_jobs_open", "priority", "id", postgresql_where=text("finished_at IS NULL")),
    # Asked at every tick.
    Index("ix_jobs_without_result", "id", postgresql_where=text("finished_at IS NOT NULL AND result IS NULL")),
    Index("ix_jobs_answer", "id", postgresql_where=text("kind = 'answer'")),  # estimates go by the newest ones
)

_IS_OPEN_SHARD = "state IN ('pending', 'queued', 'running')"

# Churns: rows are updated in place many times. Room on the page and no index on the lease columns keep those
# updates HOT, so dead rows go without VACUUM, which an index build can hold up (docs/reliability.md D12). The index of
# the open shards, which are few among many, changes only with the state.
shards = Table(
    "shards",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("run_no", Integer, nullable=False, server_default=text("1")),
    Column("lo", BigInteger, nullable=False),  # first input of the shard
    Column("hi", BigInteger, nullable=False),  # one past the last
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),  # claims that may have been poison
    Column("transient_attempts", Integer, nullable=False, server_default=text("0")),
    Column("epoch", Integer, nullable=False, server_default=text("0")),  # the fence: grows with every claim
    Column("worker", Text),
    moment("lease_until", nullable=True),
    moment("queued_at", nullable=True),
    moment("not_before", nullable=True),
    moment("finished_at", nullable=True),
    Column("error", Text),
    Column("queue", Text),  # NULL: the queue of its job's kind
    Column("is_last", Boolean, nullable=False, server_default=text("false")),  # waits until all others have ended
    Column("is_planned", Boolean, nullable=False, server_default=text("false")),  # its stage need not cut it smaller
    Column("open_inputs", Integer),  # when its last attempt failed: fewer of them now are progress
    moment("claimed_at", nullable=True),  # by its last worker
    Column("busy_s", Float, nullable=False, server_default=text("0")),  # of all its workers, by their own clocks
    Column("reranked_at_most", Integer),  # candidates of a question, where a limit of its job cut them; NULL: nowhere
    # The shards of a job, and which one comes right before another (jobs/turns.py); none of these columns changes.
    Index("ix_shards_job_id_run_no_lo", "job_id", "run_no", "lo"),
    Index("ix_shards_open", "state", "job_id", "lo", postgresql_where=text(_IS_OPEN_SHARD)),
    postgresql_with={"fillfactor": "70"},
)

workers = Table(
    "workers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("queues", ARRAY(Text), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("state", Text, nullable=False),  # live, draining
    Column("versions", JSONB, nullable=False),
    # The open jobs that this worker cannot do, by id, with the reason: it does not claim their shards.
    Column("refused", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    moment("started_at"),
    moment("seen_at"),
    postgresql_with={"fillfactor": "70"},
)

# Inputs of an ingest job.
OUTCOMES_TO_SHOW = "status IN ('rejected', 'dead') OR reason IS NOT NULL"
files = Table(
    "files",
    metadata,
    key("job_id", "jobs.id"),
    key("file_no"),
    Column("source", Text, nullable=False),
    Column("uri", Text, nullable=False),
    Column("caption", Text),
    Column("metadata", JSONB(none_as_null=True)),  # other columns of the caption file
    Column("pages", JSONB(none_as_null=True)),  # what is said about single pages of a document, by their numbers
    Column("status", Text),  # NULL until the file has an outcome
    Column("reason", Text),
    Column("image_id", BigInteger, ForeignKey("images.id", ondelete="SET NULL")),
    # "Which files of this archive were rejected or noted, and not ingested since?"
    Index("ix_files_outcomes", "job_id", postgresql_where=text(OUTCOMES_TO_SHOW)),
    Index("ix_files_uri", "uri", postgresql_using="hash", postgresql_where=text("uri <> 'erased:'")),
    # Without it, each image that is erased would be searched for in the files of all jobs.
    Index("ix_files_image_id", "image_id", postgresql_where=text("image_id IS NOT NULL")),
)

# Inputs of an answer job. A line that is not a valid question has no custom_id of its own and gets its `failed`
# answer in the transaction of the submit, so that totals always add up.
questions = Table(
    "questions",
    metadata,
    key("job_id", "jobs.id"),
    key("question_no"),
    Column("place", BigInteger, nullable=False),  # in the order of work, which the bounds of shards count
    Column("line", BigInteger, nullable=False),
    Column("custom_id", Text),
    Column("text", Text),
    Column("filter", JSONB(none_as_null=True)),  # of the question's own, beside that of its job
    Column("note", Text),  # what of the line is not used
    Column("given", JSONB(none_as_null=True)),  # further columns of the line, which the results repeat
    Column("previous", JSONB(none_as_null=True)),  # of a refresh: what the job before said (stores/jobs/refreshes.py)
    Column("picture", Text, ForeignKey("blobs.sha256")),  # that the question is asked with
    UniqueConstraint("job_id", "custom_id"),
    Index("ix_questions_job_id_place", "job_id", "place"),
    # "Who refers to this blob?", when blobs are removed; few questions have a picture.
    Index("ix_questions_picture", "picture", postgresql_where=text("picture IS NOT NULL")),
)

answers = Table(
    "answers",
    metadata,
    key("job_id"),
    key("question_no"),
    Column("run_no", Integer, primary_key=True, autoincrement=False),
    Column("shard_id", BigInteger),
    Column("epoch", Integer),
    Column("status", Text, nullable=False),
    Column("text", Text),
    Column("confidence", REAL),
    Column("models", JSONB(none_as_null=True)),
    Column("note", Text),
    Column("error_code", Text),
    Column("error", Text),
    moment("created_at"),
    Column("candidates_digest", Text),  # of the pictures and captions that were judged, to find out what has changed
    Column("changes", ARRAY(Text)),  # of a refresh: why it was asked again; empty: nothing changed, it was taken over
    Column("prompt_tokens", Integer),  # that the generator read; NULL: not counted
    Column("completion_tokens", Integer),  # that it wrote
    question_key(),
    # Few fail; who looks for them in a large job does not read all its answers.
    Index(
        "ix_answers_failed", "job_id", "question_no", postgresql_where=text("status IN ('failed', 'dead', 'expired')")
    ),
)

candidates = Table(
    "candidates",
    metadata,
    key("job_id"),
    key("question_no"),
    Column("run_no", Integer, primary_key=True, autoincrement=False),
    key("image_id"),
    Column("retrieval_rank", SmallInteger, nullable=False),
    Column("retrieval_score", REAL, nullable=False),
    Column("relevance", REAL),  # NULL: not reranked, because what was reranked before sufficed
    Column("evidence_no", SmallInteger),  # NULL: not kept
    Column("origin", Text, nullable=False, server_default=text("'picture'")),  # picture, caption, both
    Column("caption_rank", SmallInteger),  # NULL: not found by its words
    Column("caption_score", REAL),
    ForeignKeyConstraint(
        ["job_id", "question_no", "run_no"],
        ["answers.job_id", "answers.question_no", "answers.run_no"],
        ondelete="CASCADE",
    ),
    # Which answers rest on an image.
    Index("ix_candidates_image_id", "image_id", postgresql_where=text("evidence_no IS NOT NULL")),
)

# Inputs of a train job: one row, one input.
trainings = Table(
    "trainings",
    metadata,
    key("job_id", "jobs.id"),
    Column("role", Text, nullable=False),
    Column("phase", Text, nullable=False, server_default=text("'waiting'")),  # for people: what it is doing now
    Column("steps_done", Integer, nullable=False, server_default=text("0")),
    Column("steps_total", Integer, nullable=False, server_default=text("0")),
    Column("status", Text),  # NULL until the training has an outcome
    Column("reason", Text),
    Column("version_id", BigInteger, ForeignKey("model_versions.id")),
    moment("updated_at"),
)

# The losses of a training while it runs, at most about a thousand of its steps (docs/method.md 5).
training_steps = Table(
    "training_steps",
    metadata,
    key("job_id", "jobs.id"),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("loss", Float, nullable=False),
    Column("learning_rate", Float, nullable=False),
)

# Inputs of a maintenance job: one row, one input.
maintenance_tasks = Table(
    "maintenance_tasks",
    metadata,
    key("job_id", "jobs.id"),
    Column("action", Text, nullable=False),
    Column("status", Text),  # NULL until the maintenance task has an outcome
    Column("reason", Text),
    Column("report", JSONB(none_as_null=True)),
    moment("updated_at"),
)

# Inputs of a reindex job: the images to embed and, last and without an image, the gate.
reindexed = Table(
    "reindexed",
    metadata,
    key("job_id", "jobs.id"),
    key("item_no"),
    Column("image_id", BigInteger, ForeignKey("images.id", ondelete="SET NULL"), index=True),
    Column("status", Text),  # NULL until the item has an outcome
    Column("reason", Text),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("role", Text, nullable=False),
    Column("name", Text, nullable=False),  # base model and digest, or the adapter's own name
    Column("profile", Text, nullable=False),
    Column("state", Text, nullable=False),  # candidate, challenger, champion, retired
    Column("prompt", Text, nullable=False),
    Column("threshold", Float),  # η; rerankers only
    Column("threshold_curve", JSONB(none_as_null=True)),  # what η was fitted on, with its precision and recall
    Column("adapter_sha256", Text),  # NULL: the base model as it is
    Column("manifest", JSONB, nullable=False),  # every file of the model with its sha256 (docs/reliability.md D15)
    Column("base", Text),  # the base version that the adapter lies on; NULL: the base model as it is
    Column("training", JSONB(none_as_null=True)),  # of an adapter: its job, snapshot, settings, gate and figures
    moment("created_at"),
    moment("promoted_at", nullable=True),
    UniqueConstraint("role", "profile", "name"),
    # One champion for a role and profile, promised by the database.
    Index("uq_model_versions_champion", "role", "profile", unique=True, postgresql_where=text("state = 'champion'")),
)

# Who played a role when: a rollback goes one row back. `replaced_id` is NULL for the first champion.
promotions = Table(
    "promotions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("role", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("version_id", BigInteger, ForeignKey("model_versions.id"), nullable=False),
    Column("replaced_id", BigInteger, ForeignKey("model_versions.id")),
    Column("reason", Text, nullable=False),
    moment("promoted_at"),
    Index("ix_promotions_role_profile", "role", "profile", "id"),
)

# What people, or a gold standard, said about an answer. Nothing is overwritten: the newest label of a question counts.
labels = Table(
    "labels",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("job_id", BigInteger, nullable=False),
    Column("question_no", BigInteger, nullable=False),
    Column("verdict", Text, nullable=False),  # right, wrong
    Column("answer", Text),  # the right one; NULL: not said
    Column("relevant", ARRAY(BigInteger), nullable=False),  # ids of images
    Column("irrelevant", ARRAY(BigInteger), nullable=False),
    Column("source", Text, nullable=False),  # person, gold
    moment("created_at"),
    Column("reviewer", Text),  # who gave it, as the owner of jobs; NULL: an earlier version stored it
    question_key(),
    Index("ix_labels_question", "job_id", "question_no", "id"),
    Index("ix_labels_archive_id_created_at", "archive_id", "created_at"),
)

# Logged questions whose candidates or answer look wrong, or were said to be wrong, with all the reasons.
noisy_cases = Table(
    "noisy_cases",
    metadata,
    key("job_id"),
    key("question_no"),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("reasons", ARRAY(Text), nullable=False),
    Column("details", JSONB, nullable=False),  # a sentence or figures for each reason
    Column("state", Text, nullable=False),  # open, labelled, dismissed
    moment("created_at"),
    moment("updated_at"),
    # Grows with every change of the case but a lease: who saves what he saw names the version that he saw.
    Column("version", BigInteger, nullable=False, server_default=text("0")),
    # The lease of who has it open: a reviewer, and which of his tabs. NULL, or `locked_until` in the past: nobody.
    Column("locked_by", Text),
    Column("locked_tab", Text),
    moment("locked_until", nullable=True),
    question_key(),
    # The queue of an archive in its order, the newest job first.
    Index("ix_noisy_cases_queue", "archive_id", "state", text("job_id DESC"), "question_no"),
    # What a reviewer holds.
    Index("ix_noisy_cases_locked_by", "locked_by", "locked_tab", postgresql_where=text("locked_by IS NOT NULL")),
)

# What a reviewer did with a noisy case, one row each; an undo deletes its row. Kept beside `labels`, because a second
# opinion that says the same as the first is no new label.
reviews = Table(
    "reviews",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("job_id", BigInteger, nullable=False),
    Column("question_no", BigInteger, nullable=False),
    Column("reviewer", Text, nullable=False),
    Column("save_id", Text, nullable=False),  # by which a repeated request is recognised
    Column("verdict", Text),  # right, wrong; NULL: the case was dismissed
    Column("relevant", ARRAY(BigInteger), nullable=False),  # ids of images
    Column("irrelevant", ARRAY(BigInteger), nullable=False),
    Column("label_id", BigInteger),  # the label that it made; NULL: none
    Column("undo", JSONB(none_as_null=True)),  # the case before; NULL: it cannot be undone any more
    Column("version", BigInteger, nullable=False),  # of the case after it
    moment("created_at"),
    question_key(),
    UniqueConstraint("archive_id", "reviewer", "save_id"),
    Index("ix_reviews_question", "job_id", "question_no", "id"),
    Index("ix_reviews_archive_id_created_at", "archive_id", "created_at"),
)

# Which part of a bucket feeds an archive: with pictures, or with question files.
bindings = Table(
    "bindings",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("role", Text, nullable=False),  # pictures, inbox
    Column("bucket", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("options", JSONB, nullable=False),  # of an inbox: outbox and how its questions are answered
    moment("created_at"),
    moment("scanned_at", nullable=True),
    UniqueConstraint("bucket", "prefix"),
)

# What was last seen of each object under a binding, and what was done about it.
bound_objects = Table(
    "bound_objects",
    metadata,
    key("binding_id", "bindings.id"),
    Column("key", Text(collation="C"), primary_key=True),  # in the order of bytes, as buckets list them
    Column("kind", Text, nullable=False),  # picture, caption, captions, questions, other
    Column("etag", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("caption", Text),  # what a caption object says; of a picture, what its own metadata say
    Column("metadata", JSONB(none_as_null=True)),  # what else a caption object says
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="SET NULL")),  # of a picture: only until its outcome
    Column("file_no", BigInteger),  # which file of that job a picture is
    Column("image_id", BigInteger, ForeignKey("images.id", ondelete="SET NULL")),  # what a picture became
    Column("reason", Text),  # why nothing was made of it
    moment("seen_at"),
    # Of a picture: how caption files name it, and the last part of that name.
    Column("name", Text(collation="C")),
    Column("base_name", Text(collation="C")),
    Column("caption_due", Boolean, nullable=False, server_default=text("false")),  # its listed caption has changed
    Index("ix_bound_objects_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    Index("ix_bound_objects_image_id", "image_id"),
    Index("ix_bound_objects_base_name", "binding_id", "base_name", postgresql_where=text("base_name IS NOT NULL")),
    Index("ix_bound_objects_caption_due", "binding_id", "key", postgresql_where=text("caption_due")),
)

# The rows of the caption files under a binding, so that one picture costs one lookup and not the whole file.
listed_captions = Table(
    "listed_captions",
    metadata,
    key("binding_id", "bindings.id"),
    Column("name", Text(collation="C"), primary_key=True),  # of the picture
    Column("file", Text(collation="C"), primary_key=True),  # the key of the caption file
    Column("base_name", Text(collation="C"), nullable=False),
    Column("caption", Text),
    Column("metadata", JSONB(none_as_null=True)),
    Index("ix_listed_captions_base_name", "binding_id", "base_name"),
)

# Objects that something is said to have happened to. A change event only asks to look; the same one twice is one row.
change_events = Table(
    "change_events",
    metadata,
    Column("bucket", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    moment("received_at"),
    moment("not_before"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("reason", Text),  # why its object could not be observed
    # Grows with every further event: a change event is done only if none came while its object was looked at.
    Column("repeats", BigInteger, nullable=False, server_default=text("0")),
)

# Parts of the work that failed and are postponed, so that the others continue (ragllava/jobs/isolation.py).
faults = Table(
    "faults",
    metadata,
    Column("room", Text, primary_key=True),  # the loop: results, events, settle, schedules, …
    Column("subject", Text, primary_key=True),  # the part
    Column("reason", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    moment("since"),
    moment("failed_at"),
    moment("not_before"),
)

# Counters for people: received, repeated, unbound, refused, …
change_event_totals = Table(
    "change_event_totals",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    moment("updated_at"),
)

# What has happened since the system began, for its metrics: it never decreases, also when old jobs are removed. The
# number of a thing is the sum of its rows. Rows are added, never updated, so that two transactions never wait for each
# other; sums replace them later (stores/maintenance/totals.py).
totals = Table(
    "totals",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("measure", Text, nullable=False),  # jobs, inputs, rejected, mailings, webhooks, wait_seconds, shard_seconds
    Column("kind", Text, nullable=False),  # of job
    Column("result", Text, nullable=False),  # a state, an outcome, a class, or the upper bound of a bucket
    Column("number", Float, nullable=False),
)

schedules = Table(
    "schedules",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("action", Text, nullable=False),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE")),  # NULL: all archives
    Column("options", JSONB, nullable=False),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    moment("next_due"),
    moment("created_at"),
)

# When the last tick ended, by the database's clock: one row. `ragllava doctor` fails when that is long ago.
ticks = Table(
    "ticks",
    metadata,
    Column("name", Text, primary_key=True),
    moment("ended_at"),
    postgresql_with={"fillfactor": "70"},
)

# A due time fires once: whoever inserts its row first, fires (docs/reliability.md D9).
schedule_runs = Table(
    "schedule_runs",
    metadata,
    key("schedule_id", "schedules.id"),
    Column("due_at", DateTime(timezone=True), primary_key=True, server_default=func.now()),
    moment("fired_at"),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("note", Text),
)

# What was erased: the line that stays. It has no name and no content; `pending` has both, but only until all is done.
erasures = Table(
    "erasures",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("kind", Text, nullable=False),  # archive, picture, job, retired
    Column("archive_id", BigInteger),
    Column("target_id", BigInteger),  # the image or the job; NULL: several images, or the archive itself
    Column("account", Text, nullable=False),  # who asked for it: an account of the operating system, or a job
    Column("counts", JSONB, nullable=False, server_default=text("'{}'")),
    Column("pending", JSONB(none_as_null=True)),  # what is left to do; NULL: nothing
    moment("created_at"),
    moment("updated_at"),
    moment("finished_at", nullable=True),
    Index("ix_erasures_open", "id", postgresql_where=text("finished_at IS NULL")),
)

# Folders and bindings that lost so many pictures at once that these were not retired without being asked.
held_removals = Table(
    "held_removals",
    metadata,
    key("archive_id", "archives.id"),
    Column("origin", Text, primary_key=True),  # the uri of a folder, or the address of a binding
    Column("gone", BigInteger, nullable=False),
    Column("pictures", BigInteger, nullable=False),  # that the archive had from there
    moment("noticed_at"),
)

# Keys of the HTTP API. Only the hash of a key is stored; its prefix is what people see of it.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("prefix", Text, nullable=False, unique=True),
    Column("sha256", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),  # what a person calls it
    Column("role", Text, nullable=False),  # read, ask, write, review, admin
    Column("archives", ARRAY(BigInteger)),  # ids of those it may see; NULL: all
    Column("limits", JSONB, nullable=False, server_default=text("'{}'")),  # instead of those of the settings
    moment("created_at"),
    moment("expires_at", nullable=True),
    moment("revoked_at", nullable=True),
)

# Browsers that are signed in to the console: as a key, whose rights count then, or as somebody else.
sign_ins = Table(
    "sign_ins",
    metadata,
    Column("sha256", Text, primary_key=True),  # of the secret in the cookie
    Column("owner", Text, nullable=False),
    Column("key_id", BigInteger, ForeignKey("api_keys.id", ondelete="CASCADE")),
    Column("role", Text, nullable=False),
    Column("archives", ARRAY(BigInteger)),  # as in `api_keys`
    Column("limits", JSONB, nullable=False, server_default=text("'{}'")),
    moment("created_at"),
    moment("seen_at"),
    moment("ends_at", nullable=True),  # with the token of a provider
    Index("ix_sign_ins_key_id", "key_id"),
    postgresql_with={"fillfactor": "70"},
)

# Links that sign in to the console once.
sign_in_links = Table(
    "sign_in_links",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("ends_at", DateTime(timezone=True), nullable=False),
)

# Questions that a caller of the HTTP API has asked, by day.
api_usage = Table(
    "api_usage",
    metadata,
    Column("owner", Text, primary_key=True),  # as in `jobs`
    Column("day", Date, primary_key=True),
    Column("questions", BigInteger, nullable=False),
    postgresql_with={"fillfactor": "70"},
)

# Pictures that callers have stored by asking with them, each once for its caller (stores/access/asked_pictures.py).
asked_pictures = Table(
    "asked_pictures",
    metadata,
    Column("sha256", Text, ForeignKey("blobs.sha256", ondelete="CASCADE"), primary_key=True),
    Column("owner", Text, primary_key=True),  # as in `jobs`; empty: not known
    Column("size_bytes", BigInteger, nullable=False),
    moment("until", nullable=True),  # when it is let go; NULL: not as long as a question has it
    Index("ix_asked_pictures_owner", "owner", postgresql_include=["size_bytes"]),
    Index("ix_asked_pictures_until", "until", postgresql_where=text("until IS NOT NULL")),
    postgresql_with={"fillfactor": "70"},
)

# Who did what when, through the HTTP API. Rows are only added.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    moment("at"),
    Column("owner", Text, nullable=False),
    Column("action", Text, nullable=False),  # method and route
    Column("target", Text, nullable=False),  # the path
    Column("status", SmallInteger, nullable=False),  # of the answer
    Column("request_id", Text, nullable=False),
    Index("ix_audit_at", "at"),
)

# Files of the HTTP API: uploaded ones, and the output of batches. Their bytes are in the object store.
uploads = Table(
    "uploads",
    metadata,
    Column("id", Text(collation="C"), primary_key=True),
    Column("owner", Text, nullable=False),
    # Whoever may see all of these archives may see the file; NULL: only who may see all archives.
    Column("archives", ARRAY(BigInteger)),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE")),  # of the output of a batch
    moment("created_at"),
    moment("expires_at", nullable=True),
    Index("ix_uploads_created_at_id", "created_at", "id"),
    Index("ix_uploads_owner", "owner"),
    # What a caller has stored: its files, without the outputs of its batches, of which there are ever more.
    Index("ix_uploads_stored", "owner", postgresql_include=["size_bytes"], postgresql_where=text("job_id IS NULL")),
    Index("ix_uploads_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    Index("ix_uploads_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
)

# Batches of the HTTP API: each becomes an answer job as soon as its file was read.
batches = Table(
    "batches",
    metadata,
    Column("id", Text(collation="C"), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("input_file_id", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("metadata", JSONB(none_as_null=True)),
    Column("options", JSONB, nullable=False),  # AnswerOptions
    Column("output_expires_s", BigInteger),
    Column("questions", BigInteger, nullable=False),  # that count for the quota of its owner
    Column("idempotency_key", Text),
    Column("content_digest", Text, nullable=False),  # of what was asked for, to recognise a repetition
    Column("errors", JSONB(none_as_null=True)),  # why it has failed
    Column("counts", JSONB(none_as_null=True)),  # total, completed, failed, when its files are there
    Column("usage", JSONB(none_as_null=True)),  # input_tokens, output_tokens; NULL: not all counted
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    moment("created_at"),
    moment("expires_at"),
    moment("in_progress_at", nullable=True),
    moment("overdue_at", nullable=True),  # when its job was stopped because its time was over
    moment("cancelling_at", nullable=True),
    moment("finalizing_at", nullable=True),
    moment("completed_at", nullable=True),
    moment("failed_at", nullable=True),
    moment("expired_at", nullable=True),
    moment("cancelled_at", nullable=True),
    moment("ended_at", nullable=True),
    Index("ix_batches_archive_id", "archive_id"),
    Index("ix_batches_created_at_id", "created_at", "id"),
    Index("ix_batches_content_digest", "content_digest", "created_at"),
    Index("ix_batches_open", "id", postgresql_where=text("ended_at IS NULL")),
    Index("ix_batches_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    Index(
        "ix_batches_idempotency_key",
        "owner",
        "idempotency_key",
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
)

# What somebody waits for at the HTTP API and the answer workers compute: a search, or relevances. One row for each job;
# `body` is gone when it has an outcome, and `result` names no picture but by its id.
requests = Table(
    "requests",
    metadata,
    key("job_id", "jobs.id"),
    Column("operation", Text, nullable=False),
    Column("body", JSONB(none_as_null=True)),
    Column("result", JSONB(none_as_null=True)),
    Column("status", Text),
    Column("reason", Text),
    Column("code", Text),  # whose fault it is that there is no result
    postgresql_with={"fillfactor": "70"},
)

# Who wants to be told when a job ends. `secret` signs what is sent, so it is stored as it is.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE")),  # NULL: jobs of all archives
    Column("url", Text, nullable=False),
    Column("kinds", ARRAY(Text), nullable=False),  # of jobs
    Column("secret", Text, nullable=False),
    moment("created_at"),
    Index("ix_webhooks_archive_id", "archive_id"),
)

# What is to be sent, and was. A row is made in the transaction that stores the result of a job.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("webhook_id", BigInteger, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("finished_at", DateTime(timezone=True), nullable=False),  # of the job: after a retry it ends again
    Column("state", Text, nullable=False, server_default=text("'waiting'")),  # waiting, delivered, given_up
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    moment("not_before"),
    Column("error", Text),  # of the last attempt
    moment("created_at"),
    moment("delivered_at", nullable=True),
    UniqueConstraint("webhook_id", "job_id", "finished_at"),
    Index("ix_deliveries_waiting", "not_before", postgresql_where=text("state = 'waiting'")),
    Index("ix_deliveries_job_id", "job_id"),
    postgresql_with={"fillfactor": "70"},
)

# What people may want to hear of, whoever that is: `stages/notices/` finds that out. A row of a job is made in the
# transaction that stores its result. An event that is not over yet has one row, however often it is seen.
notices = Table(
    "notices",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("event", Text, nullable=False),  # job_ended, training_refused, gap_found, disk_low
    Column("subject", Text, nullable=False),  # what it happened to
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE")),  # NULL: none, or all of them
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE")),
    Column("facts", JSONB, nullable=False),  # numbers, states and names of archives; nothing of a picture
    moment("created_at"),
    moment("addressed_at", nullable=True),  # when the rules were applied
    moment("over_at", nullable=True),  # of what ends by itself: a disk that was low
    Index("uq_notices_open", "event", "subject", unique=True, postgresql_where=text("over_at IS NULL")),
    Index("ix_notices_new", "id", postgresql_where=text("addressed_at IS NULL")),
    Index("ix_notices_archive_id", "archive_id"),
    Index("ix_notices_job_id", "job_id"),
    Index("ix_notices_created_at", "created_at"),
)

# A notice for one target. `sending` while the receiver may have it already: a mail is not sent a second time then.
mailings = Table(
    "mailings",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("notice_id", BigInteger, ForeignKey("notices.id", ondelete="CASCADE"), nullable=False),
    Column("target", Text, nullable=False),  # mailto:… or https://…
    Column("state", Text, nullable=False, server_default=text("'waiting'")),  # waiting, sending, delivered, given_up
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    moment("not_before"),
    Column("error", Text),  # of the last attempt
    moment("delivered_at", nullable=True),
    UniqueConstraint("notice_id", "target"),
    Index("ix_mailings_open", "not_before", postgresql_where=text("state IN ('waiting', 'sending')")),
    postgresql_with={"fillfactor": "70"},
)
