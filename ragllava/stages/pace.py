"""How fast this process answers, which it learns from the shards that it has answered."""

from __future__ import annotations

_MEMORY = 0.5  # the weight of earlier measurements when a new shard has been answered


class AnswerPace:
    """How many seconds a unit of cost takes in this process, learned from what it has answered."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.seconds_per_cost: float | None = None

    def learn(self, seconds: float, cost: float) -> None:
        """Something of this cost took so many seconds."""
        if cost <= 0:
            return
        measured, before = seconds / cost, self.seconds_per_cost
        self.seconds_per_cost = measured if before is None else _MEMORY * before + (1 - _MEMORY) * measured
