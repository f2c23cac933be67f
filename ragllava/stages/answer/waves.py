"""Depth by need: in which order the candidates of a question are reranked, and when those that were suffice.

Candidates are reranked in waves, the strongest first. A question is done when each thing that it names has evidence,
and nothing that is left could be better: no caption names the thing as well, and no candidate is without a caption.
Where no caption names anything, all candidates are reranked: two images of high relevance say nothing about a third.

The waves of a question depend on its own candidates and relevances, so its result does not depend on the questions
beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ragllava.records import Candidate, Depth, by_retrieval

EQUAL_SHARE = 0.9  # captions that score so close to the best name the thing as well
FEW_PICTURES, MORE_PICTURES = 4, 10  # the nearest pictures up to the second wave, and up to the third

DEPTH_VERSIONS = {Depth.NEED: 2, Depth.FIXED: 1}  # of these rules, for the stamp of an answer


def waves_of(candidates: Sequence[Candidate], depth: Depth) -> list[list[Candidate]]:
    """The candidates in the waves in which they are reranked: each in exactly one, and no wave is empty."""
    if depth is Depth.FIXED:
        return [list(candidates)] if candidates else []
    named = [candidate for candidate in candidates if candidate.shares]
    pictures = by_retrieval(candidate for candidate in candidates if not candidate.shares)
    waves = [
        [candidate for candidate in named if max(candidate.shares) >= EQUAL_SHARE],
        [candidate for candidate in named if max(candidate.shares) < EQUAL_SHARE] + pictures[:FEW_PICTURES],
        pictures[FEW_PICTURES:MORE_PICTURES],
        pictures[MORE_PICTURES:],
    ]
    return [wave for wave in waves if wave]


def cut(waves: Sequence[Sequence[Candidate]], most: int) -> tuple[list[list[Candidate]], list[Candidate], bool]:
    """The waves of the `most` first candidates, those that are beyond them, and whether the last wave lost some.

    A wave that lost some says nothing about whether its candidates suffice: they would have been reranked together.
    """
    ordered = [candidate for wave in waves for candidate in wave]
    kept, taken, lost = [], 0, False
    for wave in waves:
        left = max(0, most - taken)
        kept.append(list(wave[:left]))
        lost |= 0 < left < len(wave)
        taken += len(wave)
    return [wave for wave in kept if wave], ordered[most:], lost


def is_done(reranked: Sequence[Candidate], left: Sequence[Candidate], threshold: float) -> bool:
    """Whether the candidates that were reranked suffice, and those that are left need not be."""
    if not left:
        return True
    things = max((len(candidate.shares) for candidate in (*reranked, *left)), default=0)
    if not things or any(candidate.image.caption is None for candidate in left):
        return False
    evidence = [candidate for candidate in reranked if (candidate.relevance or 0.0) >= threshold]
    return all(_has_evidence(thing, evidence, left) for thing in range(things))


def _has_evidence(thing: int, evidence: Sequence[Candidate], left: Sequence[Candidate]) -> bool:
    """Whether an image that names the thing is evidence, and none that is left names it as well."""
    best = max((candidate.shares[thing] for candidate in evidence if candidate.shares), default=0.0)
    return best > 0 and not any(candidate.shares and candidate.shares[thing] >= best for candidate in left)
