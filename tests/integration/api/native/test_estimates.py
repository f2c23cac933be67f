"""Estimates, deadlines and budgets over HTTP: a sample is timed by a worker, and no answer of it is kept."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.integration.conftest import Postcards
from tests.support.api_shop import Shop


@pytest.fixture
def asked(shop: Shop, postcards: Postcards) -> list[str]:
    """Twelve questions, and a worker whose profile is known."""
    with shop.workshop.engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE workers SET versions = '{"profile": "mini"}'""")
    return [question.text for question in postcards.archive.questions[:12]]


def estimated(http: httpx.Client, asked: list[str], **fields: Any) -> Any:
    body = {"archive": "postcards", "questions": asked, "top_k": 4, **fields}
    return http.post("/v1/estimates", json=body).raise_for_status().json()


def test_a_sample_is_timed_and_then_jobs_are_what_an_estimate_rests_on(shop: Shop, asked: list[str]) -> None:
    with shop.http("ask", "postcards") as http:
        unknown = estimated(http, asked, sample=0)
        assert (unknown["time"], unknown["busy"], unknown["basis"]) == (None, None, "nothing")
        assert any("unknown" in sentence for sentence in unknown["assumptions"])
        sampled = estimated(http, asked)
        assert (sampled["basis"], sampled["questions"], sampled["slots"]) == ("sample", 12, 1)
        assert 0 < sampled["time"]["low_s"] < sampled["time"]["expected_s"] < sampled["time"]["high_s"]
        assert http.get("/v1/jobs", params={"kind": "answer"}).json()["data"] == [], "nothing was submitted"

        body = {"archive": "postcards", "questions": asked, "top_k": 4, "deadline": "2h", "max_gpu_seconds": 900}
        job_id = http.post("/v1/jobs", json=body).raise_for_status().json()["job"]
        job = shop.wait_for_job(http, job_id)
        assert job["deadline_at"] is not None and job["max_gpu_s"] == 900
        assert job["estimate"]["basis"] == "nothing" and job["timing"]["busy_s"] > 0
        known = estimated(http, asked)
        assert (known["basis"], known["based_on"]) == ("jobs", 1)
        assert known["busy"]["expected_s"] == pytest.approx(job["timing"]["busy_s"])


@pytest.mark.parametrize("wrong", [{"deadline": "yesterday"}, {"deadline": "2001-01-01"}, {"max_gpu_seconds": 0}])
def test_wrong_limits_are_refused(shop: Shop, asked: list[str], wrong: dict[str, Any]) -> None:
    with shop.http("ask", "postcards") as http:
        answer = http.post("/v1/jobs", json={"archive": "postcards", "questions": asked, **wrong})
    assert answer.status_code == 400, answer.text


def test_the_questions_of_a_sample_count_for_the_quota(shop: Shop, asked: list[str]) -> None:
    with shop.http("ask", "postcards", questions_per_day=5) as http:
        body = {"archive": "postcards", "questions": asked, "top_k": 3}
        assert http.post("/v1/estimates", json=body).status_code == 429
        assert http.post("/v1/estimates", json=body | {"sample": 0}).status_code == 200
