"""Which held-out questions a challenger answers better or worse than the champion: by their addresses, without texts.

Who shows them looks the questions up, so what was erased since is not shown.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from ragllava.training.contest import Contest
from ragllava.training.data.datasets import question_key
from ragllava.training.data.snapshot import Snapshot
from ragllava.training.gate import WITH_CAPTIONS
from ragllava.training.version_scores import RerankerScores

MOST_EXAMPLES = 24  # gained, and as many lost
_ROUNDING = 1e-9


def changed_examples(snapshot: Snapshot, contest: Contest) -> dict[str, list[dict[str, Any]]]:
    """The questions with the largest gains and losses in the first primary condition, the largest first.

    Of a reranker, `champion_images` and `challenger_images` are the hashes of the pictures that each keeps.
    """
    changed: list[tuple[float, dict[str, Any]]] = []  # with the difference
    for share in snapshot.shares:
        before, after = contest.scores[share.archive]
        condition = next(iter(before.primary))
        pairs = zip(before.by_condition[condition], after.by_condition[condition], strict=True)
        for number, (old, new) in enumerate(pairs):
            address = share.addresses.get(question_key(before.questions[number]))
            if address is None or abs(new - old) <= _ROUNDING:
                continue
            archive_id, job_id, question_no = address
            key = {"archive_id": archive_id, "job_id": job_id, "question_no": question_no}
            images = {f"{side}_images": _kept(scores, number) for side, scores in _sides(before, after)}
            scores = {"champion": round(old, 4), "challenger": round(new, 4)}
            changed.append((new - old, {**key, **scores, **images}))
    changed.sort(key=itemgetter(0))
    lost = [item for difference, item in changed if difference < 0]
    gained = [item for difference, item in reversed(changed) if difference > 0]
    return {"gained": gained[:MOST_EXAMPLES], "lost": lost[:MOST_EXAMPLES]}


def _sides(before: Any, after: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("champion", before), ("challenger", after)


def _kept(scores: Any, number: int) -> list[str]:
    if not isinstance(scores, RerankerScores):
        return []
    return [image.image for image in scores.conditions[WITH_CAPTIONS][number].ranking if image.kept]
