"""How weights follow gradients: AdamW, SGD, or Muon for the hidden matrices and AdamW for everything else.

It moves *local* tensors: this rank's part of each parameter. What AdamW and SGD do to a number depends on that number
alone, so parts move as the whole would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmos.errors import CheckpointError
from llmos.parallel.mesh import Line
from llmos.spec import Optimizer as OptimizerSpec
from llmos.train.fused import SGD, AdamW, Mover
from llmos.train.muon import Muon

_OUTER = ("embed_tokens.weight", "lm_head.weight")
"""2-D, but lookup tables in effect: Muon's orthogonal updates are for matrices that map hidden to hidden."""

Named = list[tuple[str, nn.Parameter]]


class Optimizer:
    """One or two ways to move weights behind one learning rate, whose state is named after the parameters.

    ``weights``, by name, are fp32 and what is to be saved. They are the parameters themselves or, with ``rounded``
    parameters, copies that every step rounds into them (master weights: Micikevicius et al., arXiv 1710.03740).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        spec: OptimizerSpec,
        copies: Line,
        rounded: torch.dtype | None = None,
    ) -> None:
        """``copies`` are the ranks with the same parameters, which step together: they share the work of Muon.

        ``rounded``: turn the parameters, which are fp32, into this type.
        """
        self._parameters, self._copied = dict(parameters), rounded is not None
        self._local: Named = [(name, _local(parameter, self._copied)) for name, parameter in parameters.items()]
        if rounded:
            for parameter in parameters.values():
                torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().to(rounded)))
        self._parts = _parts(self._local, spec, copies)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights, each a DTensor where the parameter is one."""
        return {name: _like(self._parameters[name], weight) for name, weight in self._local}

    def step(self, learning_rate: float, gradients: Sequence[Tensor]) -> None:
        """Move the weights along ``gradients`` (local, in the parameters' order), at ``learning_rate``."""
        for (_, weight), gradient in zip(self._local, gradients, strict=True):
            weight.grad = gradient
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
        self._round()

    def state(self) -> dict[str, Tensor]:
        """Everything the optimizer remembers, as ``<parameter>/<what>``; DTensors where the parameters are."""
        return {
            f"{name}/{key}": _like(self._parameters[name], value)
            for name, weight in self._local
            for part in self._parts
            for key, value in part.state.get(weight, {}).items()
            if isinstance(value, Tensor)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state` returned, split as the parameters are, and from :attr:`weights` as they are.

        Raises CheckpointError unless the state of every parameter is there.
        """
        by_name: dict[str, dict[str, Tensor]] = {}
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            by_name.setdefault(name, {})[key] = value.to_local() if isinstance(value, DTensor) else value
        if wrong := by_name.keys() ^ {name for name, _ in self._local if state}:
            raise CheckpointError(f"the optimizer's state does not fit the model: {', '.join(sorted(wrong)[:5])}")
        for name, weight in self._local:
            part = next(p for p in self._parts if any(weight is w for g in p.param_groups for w in g["params"]))
            part.state[weight] = dict(by_name.get(name, {}))
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        if self._copied:
            for name, weight in self._local:
                parameter = self._parameters[name]
                (parameter.to_local() if isinstance(parameter, DTensor) else parameter).copy_(weight)


def _local(parameter: nn.Parameter, copied: bool) -> nn.Parameter:
    """What the optimizer moves in place of ``parameter``: itself, its part on this rank, or a copy of that."""
    if not isinstance(parameter, DTensor) and not copied:
        return parameter
    part = (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()
    return nn.Parameter(part.clone() if copied else part)


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """``value``, local, as a part of something with the shape of ``parameter``; counts stay as they are."""
    if not isinstance(parameter, DTensor) or value.ndim == 0:
        return value.detach()
    mesh, shape, stride = parameter.device_mesh, parameter.shape, parameter.stride()
    return DTensor.from_local(value.detach(), mesh, parameter.placements, run_check=False, shape=shape, stride=stride)


def _parts(named: Named, spec: OptimizerSpec, copies: Line) -> list[Mover]:
    hidden = [(n, p) for n, p in named if spec.name == "muon" and p.ndim == 2 and not n.endswith(_OUTER)]
    taken = {name for name, _ in hidden}
    rest = _groups([(n, p) for n, p in named if n not in taken], spec)
    parts: list[Mover] = []
    if rest:
        parts.append(SGD(rest, spec.momentum) if spec.name == "sgd" else AdamW(rest, spec.betas))
    if hidden:
        parts.append(Muon([p for _, p in hidden], spec.weight_decay, copies))
    return parts


def _groups(named: Named, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Weight decay only for matrices: a norm's gain or a bias has no reason to be small."""
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
