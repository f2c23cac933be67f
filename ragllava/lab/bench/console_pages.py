"""Pages of the console of a large archive and a large job: the milliseconds that the server takes for each.

Rows and vectors are made up, without models. Pictures have neither bytes nor captions, so no thumbnail is measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import urllib3
from sqlalchemy import Connection, text

from ragllava.errors import RagllavaError
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.json_records import to_json
from ragllava.lab.bench.front_door import serving
from ragllava.lab.bench.mixed_archive import new_image, store_archive
from ragllava.lab.bench.rows import BenchRow, Wanted
from ragllava.lab.bench.synthetic import normalised
from ragllava.lab.bench.workload import Workload
from ragllava.records import AnswerOptions, JobKind
from ragllava.stores.access.keys import AccessRole, NewKey
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction

NAME = "bench-console"
_DIMENSIONS = 8  # of vectors that no search reads
_LOOKS = 20  # at each page
_LIMIT_MS = 300.0
_TIME = "openai-processing-ms"  # a header of each answer: what the server took, without the way to the client


def console_rows(workload: Workload) -> list[BenchRow]:
    """A row for each page: the slowest look, beside the most that a page may take."""
    client, size = workload.require_client(), workload.vectors
    workload.progress(f"console: an archive of {size:,} pictures and a job of as many questions")
    random = np.random.default_rng(workload.seed)
    drawn = normalised(random.standard_normal((size, _DIMENSIONS), dtype=np.float32))
    hashes = (hashlib.sha256(f"{NAME}-{row}".encode()).hexdigest() for row in range(size))
    images = [new_image(row, sha256) for row, sha256 in enumerate(hashes)]
    store_archive(client.engine, NAME, "bench", images, drawn, with_graph=False)
    job_id = in_transaction(client.engine, _make_job, size)
    key, _ = client.access.create_key(NewKey("bench", AccessRole.READ))
    grid, job = f"/console/archives/{NAME}", f"/console/jobs/{job_id}"
    pages = {
        f"the first page of {size:,} pictures": grid,
        f"the first of {size:,} pictures by name": f"{grid}?order=name",
        f"where each page of {size:,} pictures begins": f"{grid}/marks",
        f"the first page of a job of {size:,} questions": job,
        f"a late page of a job of {size:,} questions": f"{job}?after={size * 9 // 10}",
        f"low relevance in a job of {size:,} questions": f"{job}?show=low",
    }
    with serving(str(client.settings.home)) as address, urllib3.PoolManager(retries=False) as pool:
        cookie = _sign_in(pool, address, key)
        return [_page_row(name, _look(pool, address + path, cookie)) for name, path in pages.items()]


def _page_row(name: str, milliseconds: Sequence[float]) -> BenchRow:
    figures = {"median_ms": float(np.median(milliseconds)), "looks": float(len(milliseconds))}
    return BenchRow(
        "console", f"console, {name}: slowest look", "the limit", "ms", max(milliseconds), _LIMIT_MS,
        Wanted(at_most=1.0), figures,
    )  # fmt: skip


def _sign_in(pool: urllib3.PoolManager, address: str, key: str) -> str:
    """The cookies of a sign-in. Raises RagllavaError."""
    answer = pool.request(
        "POST", f"{address}/console/sign-in", fields={"key": key}, encode_multipart=False,
        headers={"origin": address}, redirect=False,
    )  # fmt: skip
    cookies = [cookie.split(";")[0] for cookie in answer.headers.getlist("set-cookie")]
    if answer.status != 303 or not cookies:
        raise RagllavaError(f"the benchmark could not sign in to the console: status {answer.status}")
    return "; ".join(cookies)


def _look(pool: urllib3.PoolManager, address: str, cookie: str) -> list[float]:
    """The milliseconds of several looks at a page, the first one left out: it also loads the template."""
    milliseconds = []
    for _ in range(_LOOKS + 1):
        answer = pool.request("GET", address, headers={"cookie": cookie}, redirect=False)
        if answer.status != 200:
            raise RagllavaError(f"{address} of the benchmark: status {answer.status}")
        milliseconds.append(float(answer.headers[_TIME]))
    return milliseconds[1:]


def _make_job(connection: Connection, size: int) -> int:
    """An ended job with `size` answers, each of which rests on a picture."""
    archive_id = archive.get_archive(connection, NAME).archive_id
    spec = {"options": to_json(AnswerOptions())}
    job_id, _ = control.create(connection, NewJob(JobKind.ANSWER, archive_id, spec, size, size))
    for statement in _ANSWERED:
        connection.execute(text(statement), {"job_id": job_id, "archive_id": archive_id, "size": size})
    return job_id


_ANSWERED = (
    """
    INSERT INTO questions (job_id, question_no, place, line, custom_id, text)
    SELECT :job_id, n, n, n + 1, 'q' || n, 'How many windows has house ' || n || '?'
    FROM generate_series(CAST(0 AS bigint), :size - 1) n
    """,
    """
    INSERT INTO answers (job_id, question_no, run_no, status, text, confidence)
    SELECT :job_id, n, 1, 'answered', 'four', 0.8 FROM generate_series(CAST(0 AS bigint), :size - 1) n
    """,
    """
    INSERT INTO candidates (job_id, question_no, run_no, image_id, retrieval_rank, retrieval_score, relevance,
                            evidence_no)
    SELECT :job_id, row_number() OVER (ORDER BY id) - 1, 1, id, 0, 0.5, 0.9, 0
    FROM images WHERE archive_id = :archive_id
    """,
    "UPDATE shards SET state = 'done', finished_at = now() WHERE job_id = :job_id",
    """
    UPDATE jobs SET state = 'completed', started_at = now(), finished_at = now(),
           counts = jsonb_build_object('answered', CAST(:size AS bigint)) WHERE id = :job_id
    """,
)
