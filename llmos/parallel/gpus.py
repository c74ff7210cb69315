"""The GPUs that torch sees on this machine."""

from __future__ import annotations

import torch


def gpus() -> list[tuple[str, int]]:
    """Name and memory (bytes) of each."""
    every = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [(about.name, about.total_memory) for about in every]
