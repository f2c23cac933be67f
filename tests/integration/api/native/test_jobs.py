"""Jobs through HTTP: submit, follow, control, results, report, labels, noisy cases."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pyarrow import parquet
from sqlalchemy import text

from ragllava.stages.results.finalize import publish_result
from tests.integration.conftest import Postcards
from tests.support.api_shop import Shop
from tests.support.postcard_gallery import CARDS
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def questions(postcards: Postcards) -> list[str]:
    """Three questions about the postcards of the archive."""
    first = {card.file_name for card in postcards.archive.postcards[:CARDS]}
    return [asked.text for asked in postcards.archive.questions if first.issuperset(asked.relevant)][:3]


@pytest.fixture
def paused(shop: Shop) -> Iterator[None]:
    """No worker works, and nothing is left to do."""
    wait_for("the jobs of other tests", lambda: not shop.client.jobs.list(only_open=True), 120)
    shop.hold_up()
    yield
    shop.go_on()


def submit(http: httpx.Client, questions: list[Any], **more: Any) -> int:
    answer = http.post("/v1/jobs", json={"archive": "postcards", "questions": questions, **more})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["job"])


def test_results_are_those_of_the_command(shop: Shop, questions: list[str]) -> None:
    with shop.http("ask", "postcards") as http:
        rows: list[Any] = [{"custom_id": "a", "question": questions[0]}, *questions[1:]]
        job_id = submit(http, rows, name="three", top_k=5)
        job = shop.wait_for_job(http, job_id)
        assert (job["name"], job["kind"], job["done"], job["total"]) == ("three", "answer", 3, 3)
        assert job["seconds_left"] is None and job["shards"] == []

        lines = [json.loads(line) for line in http.get(f"/v1/jobs/{job_id}/results").text.splitlines()]
        assert lines == [row.as_json() for row in shop.client.questions.results(job_id)]
        told = http.get(f"/v1/jobs/{job_id}/results", params={"format": "csv", "metadata": True})
        assert told.headers["content-disposition"] == f'attachment; filename="job-{job_id}.csv"'
        table = list(csv.DictReader(io.StringIO(told.content.decode("utf-8-sig"))))
        assert [row["custom_id"] for row in table] == [line["custom_id"] for line in lines]
        data = http.get(f"/v1/jobs/{job_id}/results", params={"format": "parquet"}).content
        assert parquet.read_table(io.BytesIO(data)).column("question").to_pylist() == questions
        part = http.get(f"/v1/jobs/{job_id}/results", headers={"range": "bytes=0-9"})
        assert (part.status_code, len(part.content)) == (206, 10)

        page = http.get(f"/v1/jobs/{job_id}/report")
        assert page.headers["content-type"].startswith("text/html") and "data:image/jpeg" in page.text
        assert "sandbox" in page.headers["content-security-policy"]


def test_a_question_file_is_read_by_its_ending(shop: Shop, questions: list[str]) -> None:
    with shop.http("ask", "postcards") as http:
        table = io.StringIO()
        csv.writer(table).writerows([["custom_id", "question"], ["one", questions[0]], ["two", ""]])
        file = {"file": ("mine.csv", table.getvalue().encode())}
        refused = http.post("/v1/jobs/file", files=file, data={"archive": "postcards"})
        assert refused.status_code == 400 and "line 3" in refused.json()["error"]["message"]
        assert "mine.csv" in refused.text and "/mine.csv" not in refused.text, "the server's folders concern nobody"
        accepted = http.post("/v1/jobs/file", files=file, data={"archive": "postcards", "skip_invalid": "true"})
        assert accepted.status_code == 201, accepted.text
        assert http.post("/v1/jobs/file", files=file, data={"archive": "coins"}).status_code == 404
        assert [error["line"] for error in accepted.json()["errors"]] == [3]
        job = shop.wait_for_job(http, accepted.json()["job"])
        assert job["total"] == 2 and job["counts"]["failed"] == 1


@pytest.mark.usefixtures("one_day")
def test_wrong_submissions_are_refused_and_use_up_no_quota(shop: Shop) -> None:
    with shop.http("ask", "postcards", questions_per_day=3) as http:
        wrong: list[dict[str, Any]] = [
            {"questions": []},
            {"questions": [""]},
            {"questions": ["a", {"no": "question"}]},
            {"questions": ["a"], "top_k": 0},
            {"questions": ["a"], "where": {"nonsense": []}},
            {"questions": ["a\x00b"]},
            {"questions": ["a"], "where": {"metadata.a\x00b": "c"}},
        ]
        for body in wrong:
            answer = http.post("/v1/jobs", json={"archive": "postcards", **body})
            assert answer.status_code == 400, (body, answer.text)
        assert http.post("/v1/jobs", json={"archive": "nowhere", "questions": ["a"]}).status_code == 404
        assert submit(http, ["What?", "Which?", "Who?"])
        over = http.post("/v1/jobs", json={"archive": "postcards", "questions": ["a"]})
        assert over.status_code == 429 and int(over.headers["retry-after"]) > 0


@pytest.mark.usefixtures("one_day")
def test_a_retry_and_a_refresh_count_their_questions(shop: Shop, questions: list[str]) -> None:
    with shop.http("ask", "postcards", questions_per_day=7) as http:
        job_id = submit(http, questions)
        shop.wait_for_job(http, job_id)
        shop.hold_up()
        refreshed = http.post(f"/v1/jobs/{job_id}/refresh")
        assert refreshed.status_code == 201, refreshed.text
        again = http.post(f"/v1/jobs/{job_id}/refresh").json()
        assert (again["job"], again["is_new"]) == (refreshed.json()["job"], False), "the open one"
        shop.go_on()
        shop.wait_for_job(http, refreshed.json()["job"])
        over = http.post(f"/v1/jobs/{job_id}/refresh")
        assert over.status_code == 429 and "7 questions a day, and has asked 6" in over.json()["error"]["message"]
        shop.hold_up()
        last = submit(http, ["What?"])
        assert http.post(f"/v1/jobs/{last}/cancel").status_code == 200
        shop.wait_for_job(http, last)
        retried = http.post(f"/v1/jobs/{last}/retry")
        shop.go_on()
        assert retried.status_code == 429, retried.text
        assert http.get(f"/v1/jobs/{last}").json()["state"] == "cancelled"


def test_results_of_an_ended_job_are_made_once(shop: Shop, questions: list[str]) -> None:
    objects = shop.workshop.resources.objects
    with shop.http("write", "postcards") as http:
        job_id = submit(http, questions)
        shop.wait_for_job(http, job_id)
        folder = f"jobs/{job_id}/kept/"
        first = {form: http.get(f"/v1/jobs/{job_id}/results?format={form}") for form in ("jsonl", "csv", "parquet")}
        kept = {info.key.rpartition(".")[2]: info for info in objects.list_objects(folder)}
        assert set(kept) == {"csv", "parquet"}
        for form, answer in first.items():
            again = http.get(f"/v1/jobs/{job_id}/results?format={form}")
            assert (again.content, again.headers["etag"]) == (answer.content, answer.headers["etag"])
            rest = {"range": "bytes=10-", "if-range": answer.headers["etag"]}
            part = http.get(f"/v1/jobs/{job_id}/results?format={form}", headers=rest)
            assert part.status_code == 206 and part.content == answer.content[10:]
            other = http.get(f"/v1/jobs/{job_id}/results?format={form}", headers=rest | {"if-range": '"other"'})
            assert other.status_code == 200 and other.content == answer.content
        assert {info.key.rpartition(".")[2]: info for info in objects.list_objects(folder)} == kept
        objects.put(f"jobs/{job_id}/results.jsonl", b"{}\n")  # newer than what the job says of it
        newer = http.get(f"/v1/jobs/{job_id}/results")
        assert newer.content == b"{}\n" and newer.headers["etag"] != first["jsonl"].headers["etag"]
        publish_result(shop.workshop.engine, objects, job_id)  # as after pictures were erased
        assert not list(objects.list_objects(folder))
        assert http.get(f"/v1/jobs/{job_id}/results?format=csv").content == first["csv"].content
        assert http.delete(f"/v1/jobs/{job_id}").status_code == 202
        wait_for("the removal", lambda: not list(objects.list_objects(f"jobs/{job_id}/")), 60)


def test_jobs_at_once_do_not_exceed_the_quota(shop: Shop, paused: None) -> None:
    with shop.http("ask", "postcards", open_jobs=3) as http:
        answers: list[int] = []

        def create() -> None:
            body = {"archive": "postcards", "questions": ["What?"]}
            answers.append(http.post("/v1/jobs", json=body).status_code)

        threads = [threading.Thread(target=create) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [201] * 3 + [429] * 9
        own = http.get("/v1/jobs", params={"open": True}).json()["data"]
        assert len(own) == 3
        for job in own:
            http.post(f"/v1/jobs/{job['job']}/cancel")


def test_a_repeated_submit_makes_one_job(shop: Shop) -> None:
    with shop.http("ask", "postcards") as http:

        def keyed(text: str) -> httpx.Response:
            body = {"archive": "postcards", "questions": [text]}
            return http.post("/v1/jobs", json=body, headers={"idempotency-key": "k1"})

        first, second = keyed("What?"), keyed("What?")
        assert first.json()["job"] == second.json()["job"]
        assert (first.json()["is_new"], second.json()["is_new"]) == (True, False)
        assert keyed("Which?").status_code == 422


def test_jobs_are_listed_in_pages(shop: Shop, paused: None) -> None:
    with shop.http("ask", "postcards") as http, shop.http("ask", "coins") as other:
        mine = [submit(http, ["What?"], name=f"page {number}") for number in range(5)]
        seen, after = [], None
        while True:
            params = {"limit": 2, "open": True} | ({"after": after} if after else {})
            page = http.get("/v1/jobs", params=params).json()
            assert page["first_id"] == page["data"][0]["job"] and page["last_id"] == page["data"][-1]["job"]
            seen += [job["job"] for job in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == sorted(mine, reverse=True)
        assert other.get("/v1/jobs", params={"open": True}).json()["data"] == []
        for job_id in mine:
            assert http.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
        assert http.get("/v1/jobs", params={"state": "cancelled", "limit": 100}).json()["first_id"] == mine[-1]
        assert http.get("/v1/jobs", params={"stat": "cancelled"}).status_code == 400


def test_a_job_is_paused_resumed_cancelled_and_retried(shop: Shop, questions: list[str], paused: None) -> None:
    with shop.http("ask", "postcards") as http:
        job_id = submit(http, questions)
        assert http.post(f"/v1/jobs/{job_id}/resume").json()["state"] == "running"  # so it was
        assert http.post(f"/v1/jobs/{job_id}/pause").json()["state"] == "paused"
        assert http.post(f"/v1/jobs/{job_id}/retry").status_code == 409
        assert http.post(f"/v1/jobs/{job_id}/cancel").json()["counts"] == {"cancelled": 3}
        again = http.post(f"/v1/jobs/{job_id}/cancel")
        assert again.status_code == 409 and again.headers["x-should-retry"] == "false"
        wait_for("its result", lambda: http.get(f"/v1/jobs/{job_id}").json()["result"] is not None)
        assert http.post(f"/v1/jobs/{job_id}/retry").json()["inputs"] == 3
        shop.go_on()
        assert "cancelled" not in shop.wait_for_job(http, job_id)["counts"]

        refreshed = http.post(f"/v1/jobs/{job_id}/refresh")
        assert refreshed.status_code == 201 and refreshed.json()["is_new"]
        detail = shop.wait_for_job(http, refreshed.json()["job"])["detail"]["refresh"]
        assert (detail["refreshes"], detail["taken_over"]) == (job_id, 3)


def events_of(stream: httpx.Response) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in stream.iter_lines():
        if not line:
            yield event
            event = {}
        else:
            name, _, value = line.partition(": ")
            event[name] = value


def test_progress_comes_as_events(shop: Shop, questions: list[str], paused: None) -> None:
    with shop.http("ask", "postcards") as http:
        job_id = submit(http, questions)
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            coming = events_of(stream)
            first = next(coming)
            shop.go_on()
            events = [first, *coming]
        assert [event["event"] for event in events][-1] == "end" and events[0]["event"] == "progress"
        told = [json.loads(event["data"]) for event in events]
        assert [job["done"] for job in told] == sorted(job["done"] for job in told) and told[-1]["done"] == 3
        assert len({event["id"] for event in events}) == len(events)

        known = {"last-event-id": events[-1]["id"]}
        assert http.get(f"/v1/jobs/{job_id}/events", headers=known).status_code == 204
        late = http.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": events[0]["id"]})
        assert [event["event"] for event in events_of(late)] == ["end"]
        with shop.http("ask", "coins") as other:
            assert other.get(f"/v1/jobs/{job_id}/events").status_code == 404


def test_labels_and_noisy_cases(shop: Shop, questions: list[str]) -> None:
    with shop.http("review", "postcards") as http:
        job_id = submit(http, [{"custom_id": f"q{number}", "question": text} for number, text in enumerate(questions)])
        shop.wait_for_job(http, job_id)
        labels = [{"custom_id": "q0", "verdict": "right"}, {"custom_id": "q1", "verdict": "wrong"}]
        stored = http.post(f"/v1/jobs/{job_id}/feedback", json={"labels": labels})
        assert stored.status_code == 200, stored.text
        assert (stored.json()["stored"], stored.json()["right"], stored.json()["wrong"]) == (2, 1, 1)
        unknown = http.post(f"/v1/jobs/{job_id}/feedback", json={"labels": [{"custom_id": "x", "verdict": "right"}]})
        assert unknown.status_code == 400
        shown = http.get(f"/v1/jobs/{job_id}/questions/q1").json()
        assert shown["label"]["verdict"] == "wrong" and "said_wrong" in shown["case"]["reasons"]
        assert http.get(f"/v1/jobs/{job_id}/questions/none").status_code in (400, 404)

        cases = http.get("/v1/archives/postcards/noisy", params={"reason": "said_wrong", "state": "open"}).json()
        assert [case["question"]["custom_id"] for case in cases["data"]] == ["q1"]
        tasks = http.get("/v1/archives/postcards/noisy/tasks", params={"reason": "said_wrong"}).json()["data"]
        assert len(tasks) == 1 and "s3://" in json.dumps(tasks)
        gone = http.post("/v1/archives/postcards/noisy/dismiss", json={"job": job_id, "custom_ids": ["q1"]})
        assert gone.json()["cases"] == 1
        removed = http.delete(f"/v1/jobs/{job_id}")
        assert removed.status_code == 202, removed.text
        wait_for("the removal", lambda: http.get(f"/v1/jobs/{job_id}").status_code == 404)


def test_noisy_cases_are_reviewed_one_after_another(shop: Shop, questions: list[str]) -> None:
    with shop.http("review", "postcards") as ann, shop.http("review", "postcards") as bob:
        job_id = submit(ann, [{"custom_id": f"q{number}", "question": text} for number, text in enumerate(questions)])
        shop.wait_for_job(ann, job_id)
        labels = [{"custom_id": f"q{number}", "verdict": "wrong"} for number in (0, 1)]
        assert ann.post(f"/v1/jobs/{job_id}/feedback", json={"labels": labels}).status_code == 200
        path, asked = "/v1/archives/postcards/reviews", {"tab": "1", "job": job_id, "reason": "said_wrong"}
        [case] = ann.post(f"{path}/next", json=asked).json()["data"]
        [other] = bob.post(f"{path}/next", json=asked).json()["data"]
        key = {"job": job_id, "question_no": case["question"]["question_no"]}
        assert key["question_no"] != other["question"]["question_no"]
        assert ann.post(f"{path}/renew", json={"tab": "1", "cases": [key]}).json()["held"] == [key]
        opinion = {"question_no": key["question_no"], "version": case["version"], "tab": "1", "save_id": "a"}
        held = bob.post(f"/v1/jobs/{job_id}/reviews", json=opinion | {"verdict": "right"})
        assert held.status_code == 409 and "has this case open until" in held.json()["error"]["message"]
        for _ in range(2):
            saved = ann.post(f"/v1/jobs/{job_id}/reviews", json=opinion | {"verdict": "wrong", "answer": "three"})
            assert saved.status_code == 200 and saved.json()["state"] == "labelled", saved.text
        late = bob.post(f"/v1/jobs/{job_id}/reviews", json=opinion | {"verdict": "right"})
        assert late.status_code == 409 and "nothing was saved" in late.json()["error"]["message"]
        shown = ann.get(path).json()
        assert (shown["counts"]["mine"], shown["counts"]["labelled"], shown["answers"]["count"]) == (1, 1, 0)
        undone = ann.post(f"{path}/undo", json={"tab": "1"}).json()["case"]
        assert undone["state"] == "open" and undone["version"] > case["version"]
        assert ann.post(f"{path}/undo", json={"tab": "1"}).status_code == 409
        assert ann.post(f"{path}/release", json={"tab": "1"}).json()["released"] == 1
        assert ann.post(f"{path}/next", json={"tab": "1", "limit": 51}).status_code == 400
        assert ann.post("/v1/archives/nowhere/reviews/next", json={"tab": "1"}).status_code == 404
        assert ann.delete(f"/v1/jobs/{job_id}").status_code == 202
        wait_for("the removal", lambda: ann.get(f"/v1/jobs/{job_id}").status_code == 404)


def test_a_training_is_planned_and_versions_are_shown(shop: Shop) -> None:
    with shop.http() as http, shop.http("admin", "postcards") as bound:
        plan = http.post("/v1/trainings/plan", json={"role": "reranker", "archives": ["postcards"]})
        assert plan.status_code == 200 and plan.json()["shortage"], plan.text
        refused = http.post("/v1/trainings", json={"role": "reranker", "archives": ["postcards"]})
        assert refused.status_code == 400
        assert http.get("/v1/versions").status_code == 200
        assert http.get("/v1/versions/none").status_code in (400, 404)
        for path in ("/v1/versions", "/v1/status"):
            assert bound.get(path).status_code == 403
        assert bound.post("/v1/trainings", json={"role": "reranker", "archives": ["postcards"]}).status_code == 403


def test_schedules_and_maintenance(shop: Shop) -> None:
    with shop.http() as http, shop.http("admin", "postcards") as bound:
        new = {"action": "gaps", "cron": "0 3 * * *", "archive": "postcards", "name": "nightly"}
        made = bound.post("/v1/schedules", json=new)
        assert made.status_code == 201, made.text
        assert [row["name"] for row in bound.get("/v1/schedules").json()["data"]] == ["nightly"]
        assert bound.post("/v1/schedules/nightly/pause").json()["schedule"]["paused"] is True
        assert bound.post("/v1/schedules/nightly/resume").json()["schedule"]["paused"] is False
        fired = bound.post("/v1/schedules/nightly/run").json()
        assert shop.wait_for_job(bound, fired["job"])["state"] == "completed"
        for body in (new, new | {"cron": "x"}, new | {"name": "n", "options": {"retriever": "/etc"}}):
            assert bound.post("/v1/schedules", json=body).status_code == 400
        for of_all in (new | {"archive": None}, {"action": "gc", "cron": "0 3 * * *"}):
            assert bound.post("/v1/schedules", json=of_all | {"name": "n"}).status_code == 403
        assert bound.delete("/v1/schedules/nightly").json()["deleted"] is True

        task = bound.post("/v1/maintenance", json={"task": "gaps", "archive": "postcards"})
        assert task.status_code == 202 and shop.wait_for_job(bound, task.json()["job"])["state"] == "completed"
        assert bound.post("/v1/maintenance", json={"task": "gc"}).status_code == 403
        assert http.post("/v1/maintenance", json={"task": "gc", "archive": "postcards"}).status_code == 400
        status = http.get("/v1/status").json()
        assert [worker["state"] for worker in status["workers"]] == ["live"]


def test_a_mailing_that_was_given_up_is_sent_again(shop: Shop) -> None:
    given_up = """
        WITH notice AS (
            INSERT INTO notices (event, subject, facts, addressed_at) VALUES ('gap_found', 'x', '{}', now())
            RETURNING id
        )
        INSERT INTO mailings (notice_id, target, state) SELECT id, 'mailto:a@example.org', 'given_up' FROM notice
    """
    with shop.http() as http, shop.http("admin", "postcards") as bound:
        assert http.get("/v1/mailings?state=given_up").json()["data"] == []
        assert http.post("/v1/mailings/retry", json={"mailings": [7]}).status_code == 404
        assert bound.get("/v1/mailings").status_code == bound.post("/v1/mailings/retry", json={}).status_code == 403
        with shop.workshop.engine.begin() as connection:
            connection.execute(text(given_up))
        [mailing] = http.get("/v1/mailings?state=given_up").json()["data"]
        assert (mailing["event"], mailing["target"]) == ("gap_found", "mailto:a@example.org")
        assert http.post("/v1/mailings/retry", json={}).json()["number"] == 1
        [mailing] = http.get("/v1/mailings").json()["data"]
        assert mailing["state"] == "waiting" and mailing["next_try_at"]
        assert http.post("/v1/mailings/retry", json={"mailings": [mailing["mailing_id"]]}).json()["number"] == 1
