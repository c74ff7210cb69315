"""AdamW and SGD by torch's fused kernels, and what they have in common with Muon.

``torch.optim`` calls the same kernels, and loads torch's compiler to tell it that it is not wanted: of 6.7 s of a core
from a rank's start to the end of training three small steps, 1.2 s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

_EPSILON = 1e-8


class Mover(ABC):
    """Moves weights along their ``.grad``.

    ``param_groups`` (``params``, ``weight_decay``, ``lr``) and ``state``, what is remembered of each weight, are as
    torch.optim's.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = groups
        self.state: dict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    @abstractmethod
    def step(self) -> None:
        """Move all weights once."""

    def _remembered(self, weights: list[nn.Parameter], name: str, scalar: bool = False) -> list[Tensor]:
        """``name`` of each of ``weights``, of its shape or one number; zeros at first."""
        for weight in weights:
            if name not in self.state[weight]:
                self.state[weight][name] = (
                    weight.new_zeros((), dtype=torch.float32) if scalar else torch.zeros_like(weight)
                )
        return [self.state[weight][name] for weight in weights]


class AdamW(Mover):
    """Loshchilov and Hutter, arXiv 1711.05101."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups)
        self._betas = betas

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights, (beta1, beta2) = group["params"], self._betas
            steps = self._remembered(weights, "step", scalar=True)
            moments = [self._remembered(weights, name) for name in ("exp_avg", "exp_avg_sq")]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(  # type: ignore[call-overload]
                *(weights, [weight.grad for weight in weights], *moments, [], steps),
                **{"lr": group["lr"], "beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"]},
                **{"eps": _EPSILON, "amsgrad": False, "maximize": False},
            )


class SGD(Mover):
    """With momentum, unless that is 0. The first step's is its gradient."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups)
        self._momentum = momentum

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights, first = group["params"], not any(self.state.get(weight) for weight in group["params"])
            momenta = self._remembered(weights, "momentum_buffer") if self._momentum else []
            torch._fused_sgd_(  # type: ignore[call-overload]
                *(weights, [weight.grad for weight in weights], momenta),
                **{"lr": group["lr"], "momentum": self._momentum, "weight_decay": group["weight_decay"]},
                **{"dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": first},
            )
