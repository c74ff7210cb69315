"""Random windows of a file of uint16 tokens, and a clock of steps. For peers' environments: numpy and torch only."""

import json
import sys
import time

import numpy as np
import torch
from torch.utils.data import Dataset


class Windows(Dataset):
    """``count`` windows of ``length`` tokens of the file ``path``."""

    def __init__(self, path: str, length: int, count: int) -> None:
        self._tokens, self._length, self._count = np.memmap(path, dtype=np.uint16, mode="r"), length, count
        self._starts = np.random.default_rng(0).integers(len(self._tokens) - length, size=count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        start = self._starts[index]
        return torch.from_numpy(self._tokens[start : start + self._length].astype(np.int64))


class Clock:
    """Prints ``step_s`` as a JSON line each time it ticks, from the second time on."""

    def __init__(self) -> None:
        self._last: float | None = None

    def tick(self, loss: float | None = None) -> None:
        """A step has ended."""
        now = time.perf_counter()
        if self._last is not None:
            print(json.dumps({"step_s": now - self._last, "loss": loss}), flush=True)
        self._last = now


def case() -> dict:
    """What is to be run: the JSON in the first argument."""
    return json.loads(sys.argv[1])
