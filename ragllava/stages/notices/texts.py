"""Notices for people: the subject and the text of a mail, and the JSON of a webhook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ragllava.stores.maintenance.notices import Notice, NoticeEvent


def subject_of(notice: Notice) -> str:
    """One line, of words and numbers of ours alone."""
    match notice.event:
        case NoticeEvent.JOB_ENDED:
            return f"RagLLaVA: job {notice.job_id} ended as {notice.facts['state'].replace('_', ' ')}"
        case NoticeEvent.TRAINING_REFUSED:
            return f"RagLLaVA: the gate refused the training of job {notice.job_id}"
        case NoticeEvent.GAP_FOUND:
            return f"RagLLaVA: job {notice.job_id} found pictures that no question can find"
        case NoticeEvent.DISK_LOW:
            return f"RagLLaVA: {notice.facts['free_gib']:g} GiB of disk are left"


def body_of(notice: Notice) -> str:
    """The text of a mail."""
    return "\n".join([*_lines(notice), "", f"Noticed at {notice.created_at.isoformat(timespec='seconds')}."]) + "\n"


def json_of_notice(notice: Notice) -> dict[str, Any]:
    """The body of a webhook."""
    data = {"job": notice.job_id, "archive": notice.archive, **notice.facts}
    return {"type": notice.event.value.replace("_", "."), "timestamp": notice.created_at.isoformat(), "data": data}


def _lines(notice: Notice) -> Iterator[str]:
    facts = notice.facts
    if notice.archive is not None:
        yield f"Archive: {notice.archive}"
    match notice.event:
        case NoticeEvent.JOB_ENDED:
            yield f"Job {notice.job_id}, {facts['kind']}: {facts['state'].replace('_', ' ')}"
            outcomes = ", ".join(f"{number} {status}" for status, number in sorted(facts["counts"].items()))
            yield f"Inputs: {facts['total']}" + (f" ({outcomes})" if outcomes else "")
            yield f"`ragllava jobs show {notice.job_id}` shows more."
        case NoticeEvent.TRAINING_REFUSED:
            yield f"The {facts['role']} that job {notice.job_id} has trained did not pass the gate; the champion stays."
            yield f"`ragllava jobs show {notice.job_id}` says why."
        case NoticeEvent.GAP_FOUND:
            for archive, reasons in facts["gaps"].items():
                yield f"{archive}: " + ", ".join(f"{number} {reason}" for reason, number in reasons.items())
            yield "`ragllava archive gaps NAME` lists them."
        case NoticeEvent.DISK_LOW:
            yield f"Machine {facts['host']}: {facts['free_gib']:g} of {facts['total_gib']:g} GiB are free."
            yield f"The limit is {facts['limit_gib']:g} GiB (RAGLLAVA_DISK_LOW_GIB)."
