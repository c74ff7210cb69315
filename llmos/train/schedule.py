"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from llmos.spec import Optimizer


def learning_rate(step: int, steps: int, optimizer: Optimizer) -> float:
    """The rate of step ``step`` (0-based) of ``steps``.

    Rises linearly to ``optimizer.learning_rate``, reached with the last warm-up step (never 0: the first step counts),
    then falls as half a cosine to ``min_learning_rate_ratio`` of it, reached with the last step.
    Source: Loshchilov and Hutter, SGDR (arXiv 1608.03983), without restarts.
    """
    warmup = min(optimizer.warmup_steps, steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    progress = (step - warmup + 1) / max(1, steps - warmup)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    ratio = optimizer.min_learning_rate_ratio
    return optimizer.learning_rate * (ratio + (1 - ratio) * cosine)
