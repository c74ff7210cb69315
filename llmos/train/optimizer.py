"""How weights follow gradients: AdamW, or Muon for the hidden matrices and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmos.errors import CheckpointError
from llmos.parallel.world import World
from llmos.spec import Optimizer as OptimizerSpec
from llmos.train.muon import Muon

_OUTER = ("embed_tokens.weight", "lm_head.weight")
"""2-D, but lookup tables in effect: Muon's orthogonal updates are for matrices that map hidden to hidden."""

Named = list[tuple[str, nn.Parameter]]


class Optimizer:
    """One or two torch optimizers behind one learning rate, whose state is named after the parameters.

    All ranks of ``world`` step together: some of the work is shared.
    """

    def __init__(self, model: nn.Module, spec: OptimizerSpec, world: World) -> None:
        self._named: Named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        hidden = [(n, p) for n, p in self._named if spec.name == "muon" and p.ndim == 2 and not n.endswith(_OUTER)]
        taken = {name for name, _ in hidden}
        self._parts: list[torch.optim.Optimizer] = [_adamw([(n, p) for n, p in self._named if n not in taken], spec)]
        if hidden:
            matrices = [parameter for _, parameter in hidden]
            self._parts.append(Muon(matrices, spec.learning_rate, spec.weight_decay, world))

    def step(self, learning_rate: float) -> None:
        """Move the weights along their ``.grad``, at ``learning_rate``."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def state(self) -> dict[str, Tensor]:
        """Everything the optimizer remembers, as ``<parameter>/<what>``."""
        return {
            f"{name}/{key}": value
            for name, parameter in self._named
            for part in self._parts
            for key, value in part.state.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state` returned. Raises CheckpointError unless it fits the parameters."""
        by_name: dict[str, dict[str, Any]] = {}
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            by_name.setdefault(name, {})[key] = value
        if wrong := by_name.keys() ^ {name for name, _ in self._named if state}:
            raise CheckpointError(f"the optimizer's state does not fit the model: {', '.join(sorted(wrong)[:5])}")
        for part in self._parts:
            owned = {parameter for group in part.param_groups for parameter in group["params"]}
            for name, parameter in self._named:
                if parameter in owned and state:
                    part.state[parameter] = {k: v.to(parameter.device) for k, v in by_name[name].items()}


def _adamw(named: Named, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Weight decay only for matrices: a norm's gain or a bias has no reason to be small."""
    groups = [
        {"params": _parameters(named, lambda p: p.ndim >= 2), "weight_decay": spec.weight_decay},
        {"params": _parameters(named, lambda p: p.ndim < 2), "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=spec.learning_rate, betas=spec.betas, fused=True)


def _parameters(named: Named, wanted: Callable[[nn.Parameter], bool]) -> list[nn.Parameter]:
    return [parameter for _, parameter in named if wanted(parameter)]
