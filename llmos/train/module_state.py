"""A user's model and optimizer as the tensors and numbers of a checkpoint, and back.

torch.distributed.checkpoint knows their names, whatever wraps the model (DDP, FSDP2, compile).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from llmos.errors import UsageError

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_STATE = "state."


def tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters and persistent buffers of ``model`` by name; they share its memory. Raises UsageError."""
    found: dict[str, Any] = dict(get_model_state_dict(model)) if isinstance(model, nn.Module) else dict(model)
    for name, value in found.items():
        if not isinstance(value, Tensor) or "/" in name:
            what = f"`{name}` of the model is of type {type(value).__name__}: expected a tensor, in its name no `/`"
            raise UsageError(what, param="model")
    return {name: value.detach() for name, value in found.items()}


def optimizer_state(model: Any, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of ``optimizer`` over ``model``'s parameters: tensors by ``<parameter>/<what>``, all else as JSON."""
    flat: dict[str, Any] = get_optimizer_state_dict(_module(model), optimizer, options=_FLAT)
    held = {name: value for name, value in flat.items() if name.startswith(_STATE) and isinstance(value, Tensor)}
    rest = {name: value for name, value in flat.items() if name not in held}
    scalars = {name: value.item() if isinstance(value, Tensor) else value for name, value in rest.items()}
    return {_slashed(name): value for name, value in held.items()}, scalars


def load_optimizer(model: Any, optimizer: Optimizer, held: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Put ``optimizer`` where it was when :func:`optimizer_state` returned these."""
    flat: dict[str, Any] = {_STATE + name.replace("/", "."): value for name, value in held.items()}
    set_optimizer_state_dict(_module(model), optimizer, flat | dict(scalars), options=_FLAT)


def _slashed(name: str) -> str:
    parameter, _, what = name.removeprefix(_STATE).rpartition(".")
    return f"{parameter}/{what}"


def _module(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        what = f"the model is of type {type(model).__name__}: with an optimizer, expected a torch.nn.Module"
        raise UsageError(what, hint="Its parameters have names.", param="model")
    return model
