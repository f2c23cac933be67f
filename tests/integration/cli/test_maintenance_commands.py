"""`ragllava schedule …`, `ragllava maintenance` and `ragllava doctor --deep`, without workers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine, text

from ragllava.cli.progress import detail_lines
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import archive
from ragllava.stores.buckets import held_removals
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import erasures, faults
from ragllava.stores.maintenance.erasures import ErasureKind
from ragllava.stores.maintenance.ticks import note_tick
from ragllava.stores.objects import content_key
from tests.support.run_command import Run
from tests.support.workshop import ARCHIVE, Workshop


def test_a_schedule_from_its_beginning_to_its_end(run: Run, engine: Engine) -> None:
    assert run("schedule", "list")[1].startswith("no schedule yet")
    code, out, err = run("schedule", "add", "gc", "--cron", "0 3 * * 0", "--timezone", "Europe/Berlin", "--delete")
    assert (code, err) == (0, "")
    assert out.startswith("schedule gc: gc (delete True), for the first time ")
    assert "03:00:00 Europe/Berlin" in out
    assert run("schedule", "pause", "gc")[0] == 0
    code, out, err = run("schedule", "run", "gc", "--json")
    assert (code, json.loads(out)["job_id"]) == (0, 1)
    out = run("schedule", "list")[1]
    assert "paused" in out and "job 1 running" in out
    code, out, err = run("schedule", "run", "gc")
    assert (code, out) == (1, "schedule gc started no job: job 1, which it started before, has not ended yet\n")
    assert "schedule gc is resumed, next" in run("schedule", "resume", "gc")[1]
    [listed] = json.loads(run("schedule", "list", "--json")[1])
    assert (listed["cron"], listed["options"], listed["paused"]) == ("0 3 * * 0", {"delete": True}, False)
    assert run("schedule", "remove", "gc") == (0, "schedule gc is deleted\n", "")
    assert run("schedule", "list", "--json")[1] == "[]\n"


def test_a_mistake_is_one_sentence_and_exit_code_1(run: Run) -> None:
    for words, message in (
        (("schedule", "add", "gc", "--cron", "nightly"), "'nightly' is not a cron line"),
        (("schedule", "add", "vacuum", "--cron", "0 3 * * *", "--delete"), "vacuum does not take the option delete"),
        (("schedule", "pause", "gc"), "there is no schedule 'gc'"),
        (("maintenance", "vacuum", "--archive", "cards"), "vacuum concerns the whole system"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (1, "") and err.startswith("ragllava: ") and message in err
        assert err.count("\n") == 1


def test_a_maintenance_task_is_queued_and_shown_with_its_report(run: Run, workshop: Workshop) -> None:
    code, out, _ = run("maintenance", "retention", "--name", "spring cleaning", "--no-wait")
    assert (code, out) == (0, "job 1 queued: 1 maintenance task; `ragllava jobs show 1` shows its progress\n")
    assert "retention: not done yet" in run("jobs", "show", "1")[1]
    assert "spring cleaning" in run("jobs", "list")[1]
    workshop.run()
    publish_missing_results(workshop.engine, workshop.resources.objects)
    out = run("jobs", "show", "1")[1]
    assert "job 1 completed: 1 maintenance task: 1 done" in out
    dropped = "0 replaced indexes, 0 jobs, 0 retired pictures, 0 old runs of schedules"
    assert f"retention: dropped {dropped}, 0 records of calls and 0 old notices" in out
    assert "  jobs: dropped 0, kept_for_labels_and_noisy_cases 0" in detail_lines(workshop.job(1))
    assert json.loads(run("jobs", "show", "1", "--json")[1])["result"]["reconciled"]["adds_up"] is True


def test_a_list_of_jobs_that_is_cut_says_how_more_are_shown(run: Run) -> None:
    for action in ("retention", "gc"):
        assert run("maintenance", action, "--no-wait")[0] == 0
    code, out, err = run("jobs", "list", "--limit", "1")
    assert (code, err) == (0, "these are the newest 1 jobs; --limit shows more\n")
    assert [line.split()[0] for line in out.splitlines()] == ["job", "2"]
    assert run("jobs", "list")[2] == ""


def deep_findings(out: str) -> list[dict[str, Any]]:
    return [finding for finding in json.loads(out)["findings"] if finding["topic"] == "deep"]


def test_the_deep_doctor_looks_no_deeper_into_tables_of_another_version(run: Run, owner_engine: Engine) -> None:
    with owner_engine.begin() as connection:
        connection.execute(text("DROP TABLE schedule_runs"))
    code, out, err = run("doctor", "--deep", "--json")
    assert (code, err) == (1, "")
    [finding] = deep_findings(out)
    assert "this version's tables; run `ragllava migrate`" in finding["problem"]


def test_the_deep_doctor_exits_with_1_and_one_line_for_what_is_wrong(
    run: Run, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGLLAVA_TICK_S", "300")  # a doctor on a busy machine may take longer than a tick may be late
    in_transaction(workshop.engine, note_tick)
    workshop.resources.objects.put(content_key("a" * 64), b"stray")
    code, out, _ = run("doctor", "--deep", "--json")
    findings = deep_findings(out)
    assert code == 1 and len(findings) > 15
    assert [finding["name"] for finding in findings if finding["problem"]] == ["content"]
    workshop.resources.objects.delete(content_key("a" * 64))
    assert run("doctor", "--deep")[0] == 0
    with workshop.engine.begin() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 hour'"))
    code, out, _ = run("doctor", "--deep")
    assert code == 1
    [line] = [line for line in out.splitlines() if line.startswith("wrong: ")]
    assert "1 workers stopped reporting without signing off, as answer@test" in line


def test_the_deep_doctor_names_removals_that_are_not_finished(
    run: Run, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGLLAVA_TICK_S", "300")
    in_transaction(workshop.engine, note_tick)
    erasure_id = in_transaction(workshop.engine, erasures.begin, ErasureKind.PICTURES, "somebody", archive_id=None)
    assert run("doctor", "--deep")[0] == 0, "it has just begun"
    with workshop.engine.begin() as connection:
        connection.execute(text("UPDATE erasures SET updated_at = now() - interval '1 day'"))
    code, out, _ = run("doctor", "--deep", "--json")
    [wrong] = [finding for finding in deep_findings(out) if finding["problem"]]
    assert (code, wrong["name"]) == (1, "removals")
    assert "1 removals are not finished" in wrong["problem"] and str(erasure_id) in wrong["problem"]


def test_status_and_doctor_name_pictures_that_are_held(run: Run, workshop: Workshop) -> None:
    with workshop.engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, ARCHIVE).archive_id
        held_removals.hold(connection, archive_id, "s3://bucket/in/", 5, 6)
    in_transaction(workshop.engine, note_tick)
    with workshop.engine.begin() as connection:  # a maintenance worker that is away hides nothing else
        connection.execute(text("UPDATE ticks SET ended_at = now() - interval '1 day'"))
    sentence = "5 of 6 pictures"
    assert sentence in run("status")[1]
    [held] = json.loads(run("status", "--json")[1])["held_removals"]
    assert (held["archive"], held["gone"], held["pictures"]) == (ARCHIVE, 5, 6)
    code, out, _ = run("doctor", "--json")
    assert any(finding["problem"] for finding in json.loads(out)["findings"] if finding["name"] == "last tick")
    [finding] = [finding for finding in json.loads(out)["findings"] if finding["topic"] == "archives"]
    assert code == 1 and finding["name"] == ARCHIVE
    assert sentence in finding["problem"] and "--allow-removals" in finding["problem"]
    with workshop.engine.begin() as connection:
        held_removals.release(connection, archive_id, "s3://bucket/in/")
    assert json.loads(run("status", "--json")[1])["held_removals"] == []


def test_status_and_doctor_show_what_does_not_succeed(run: Run, engine: Engine) -> None:
    with engine.begin() as connection:
        for _ in range(3):
            faults.record(connection, "events", "s3://bucket/in/", "RuntimeError: a \x1b[2Jdefect", 600.0)
    [shown] = json.loads(run("status", "--json")[1])["faults"]
    assert (shown["subject"], shown["attempts"], shown["reason"][:12]) == ("s3://bucket/in/", 3, "RuntimeError")
    out = run("status")[1]
    assert "events: s3://bucket/in/" in out and r"a \x1b[2Jdefect" in out
    code, out, _ = run("doctor", "--json")
    findings = [finding for finding in json.loads(out)["findings"] if finding["topic"] == "faults"]
    assert code == 1 and [finding["name"] for finding in findings] == ["events: s3://bucket/in/"]
    assert "does not succeed: RuntimeError" in findings[0]["problem"]
    with engine.begin() as connection:
        faults.clear(connection, "events", ["s3://bucket/in/"])
    assert json.loads(run("status", "--json")[1])["faults"] == []
