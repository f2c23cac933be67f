"""How fast this process answers, measured on the shards that it has answered."""

from __future__ import annotations

_DECAY = 0.5  # the weight of earlier measurements in the moving average


class AnswerPace:
    """The seconds per unit of cost in this process, a moving average; None before the first measurement."""

    seconds_per_cost: float | None = None

    def learn(self, seconds: float, cost: float) -> None:
        """Add a measurement: work of this cost took so many seconds."""
        if cost <= 0:
            return
        measured, average = seconds / cost, self.seconds_per_cost
        self.seconds_per_cost = measured if average is None else _DECAY * average + (1 - _DECAY) * measured
