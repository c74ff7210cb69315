"""The state of this process's random number generators, as tensors that a checkpoint can hold."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TORCH, _CUDA, _NUMPY, _PYTHON = "torch", "cuda", "numpy", "python"


def state(device: torch.device) -> dict[str, Tensor]:
    """Where the generators of torch (the CPU's and, on a GPU, ``device``'s), numpy and Python stand; uint8."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    found = {
        _TORCH: torch.get_rng_state(),
        _NUMPY: _pack([kind, np.asarray(keys).tolist(), *rest]),
        _PYTHON: _pack([version, numbers, gauss]),
    }
    return found | ({_CUDA: torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore(saved: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators where they stood when :func:`state` returned ``saved``; those not in it stay."""
    if _TORCH in saved:
        torch.set_rng_state(saved[_TORCH].cpu())
    if _CUDA in saved and device.type == "cuda":
        torch.cuda.set_rng_state(saved[_CUDA].cpu(), device)
    if _NUMPY in saved:
        kind, keys, *rest = _unpack(saved[_NUMPY])
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if _PYTHON in saved:
        version, numbers, gauss = _unpack(saved[_PYTHON])
        random.setstate((version, tuple(numbers), gauss))


def _pack(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _unpack(packed: Tensor) -> Any:
    return json.loads(bytes(packed.cpu().numpy()))
