"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from llmos.spec import Optimizer


def learning_rate(step: int, steps: int, optimizer: Optimizer) -> float:
    """The rate of step ``step`` (0-based) of ``steps``.

    Rises linearly to ``optimizer.learning_rate``, reached with the last warm-up step (never 0: the first step counts),
    then falls to ``min_learning_rate_ratio`` of it, reached with the last step.
    """
    warmup = min(optimizer.warmup_steps, steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup + 1) / max(1, steps - warmup))
    ratio = optimizer.min_learning_rate_ratio
    return optimizer.learning_rate * (ratio + (1 - ratio) * _height(progress, steps - warmup, steps, optimizer))


def _height(progress: float, after_warmup: int, steps: int, optimizer: Optimizer) -> float:
    """From 1 at ``progress`` 0 to 0 at 1.

    - ``cosine``: half a cosine; Loshchilov and Hutter, SGDR (arXiv 1608.03983), without restarts.
    - ``linear``: a straight line; Defazio et al. (arXiv 2310.07831) find it as good as any.
    - ``wsd``: 1, then a straight line over the last ``decay_fraction`` of all steps; MiniCPM (arXiv 2404.06395).
    """
    if optimizer.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if optimizer.schedule == "linear":
        return 1 - progress
    decay = min(1.0, optimizer.decay_fraction * steps / max(1, after_warmup))
    return min(1.0, (1 - progress) / decay)
