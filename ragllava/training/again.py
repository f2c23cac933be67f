"""Evaluate a refused version again: labels that came since its training may prove what it gained. No torch here.

It is one more try against the champion, so the gate asks for more proof than at the one before. The version is not
trained any further; its threshold is fitted again, on the calibration questions of now.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from ragllava.errors import JobRefused
from ragllava.json_records import to_json
from ragllava.stages.champions import fetch_adapter
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import ModelVersion
from ragllava.training.changed_examples import changed_examples
from ragllava.training.contest import Contest
from ragllava.training.course import Course, compare, end_course
from ragllava.training.data.snapshot import Snapshot


def judge_again(course: Course, snapshot: Snapshot, name: str) -> None:
    """Hold the contest between a refused version and the champion on the held-out questions of now.

    Raises JobRefused for a version that is not a refused one, UsageError for an unknown one.
    """
    context = course.context
    view = context.read(registry.find_version, course.profile.name, name, course.request.role)
    version = view.version
    if view.state != "candidate" or version.adapter_sha256 is None:
        raise JobRefused(f"version {name} is {view.state}; only a version that the gate refused is evaluated again")
    adapter = fetch_adapter(context.resources.objects, version.adapter_sha256, context.settings.home / "cache")
    course.enter("judging")
    contest = compare(course, snapshot, version.name, adapter)
    course.enter("publishing")
    context.commit(_record, course, version, snapshot, contest)


def _record(
    connection: Connection, course: Course, version: ModelVersion, snapshot: Snapshot, contest: Contest
) -> None:
    found: dict[str, Any] = {
        **contest.as_json(),
        "examples": changed_examples(snapshot, contest),
        "hold_out": snapshot.hold_out_id,
        "data": [share.figures() for share in snapshot.shares],
        "judged_by": course.job_id,
    }
    fit = to_json(contest.fit)
    registry.record_contest(connection, version, found, contest.threshold, fit, passed=contest.passed)
    end_course(connection, course, version, snapshot, contest, "; ".join(contest.reasons))
