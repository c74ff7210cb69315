"""Where the memory of a rank goes: its weights, the key-value cache, working space; and how many blocks fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from llmos.errors import OutOfMemoryError
from llmos.infer.step import BLOCK_TOKENS

CPU_SHARE, GPU_SHARE = 0.5, 0.9
"""Of the free memory, for the cache: a machine's is for others too, a card's is not."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Account:
    """Bytes of one rank. ``free`` was there before the cache; the largest step needs ``working`` while it runs."""

    free_bytes: int
    weights_bytes: int
    cache_bytes: int
    working_bytes: int
    blocks: int
    block_bytes: int

    def __str__(self) -> str:
        tokens = self.blocks * BLOCK_TOKENS
        parts = f"weights {_size(self.weights_bytes)}, working space {_size(self.working_bytes)}"
        return f"{parts}, cache {_size(self.cache_bytes)}: {self.blocks:,} blocks, {tokens:,} tokens"

    def stats(self) -> dict[str, int]:
        """JSON-able."""
        return asdict(self)


def free_bytes(device: torch.device) -> int:
    """Memory that can be had now: of the card, or of this machine within the limit of the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    used -= int(stat.get("inactive_file", 0))  # of files read before: given up as soon as somebody needs it
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def check_weights(needed_bytes: int, device: torch.device, ranks: int) -> None:
    """Raises OutOfMemoryError when a rank's weights would not fit into the free memory."""
    free = free_bytes(device)
    if needed_bytes > free:
        raise OutOfMemoryError(
            f"the weights of {'the model' if ranks == 1 else f'each of {ranks} ranks'} need {_size(needed_bytes)}: "
            f"{_size(free)} are free",
            hint="Quantize the model (`llmos compress`), use more ranks (`tp`, `pp`), or a smaller model.",
        )


def account(
    device: torch.device,
    *,
    weights_bytes: int,
    working_bytes: int,
    block_bytes: int,
    blocks: int | None,
    memory_bytes: int | None,
    context_length: int,
) -> Account:
    """``blocks`` blocks, or as many as ``memory_bytes`` hold, or a share of the free memory.

    Raises OutOfMemoryError when that is not free, or has no room for one sequence of ``context_length`` tokens.
    """
    free = free_bytes(device)
    left = max(0, free - working_bytes)
    if blocks is None:
        allowed = int(left * (CPU_SHARE if device.type == "cpu" else GPU_SHARE))
        blocks = (allowed if memory_bytes is None else memory_bytes) // block_bytes
        _check_context(blocks, block_bytes, context_length, left)
    if blocks * block_bytes > left:
        what = f"a cache of {blocks:,} blocks needs {_size(blocks * block_bytes)} beside {_size(working_bytes)}"
        raise OutOfMemoryError(
            f"{what} of working space: {_size(free)} are free",
            hint=f"{left // block_bytes:,} blocks ({left // block_bytes * BLOCK_TOKENS:,} tokens) would fit.",
        )
    return Account(free, weights_bytes, blocks * block_bytes, working_bytes, blocks, block_bytes)


def _check_context(blocks: int, block_bytes: int, context_length: int, left: int) -> None:
    needed = -(-context_length // BLOCK_TOKENS)
    if blocks < needed:
        has = f"the cache has room for {blocks:,} blocks ({_size(blocks * block_bytes)})"
        fits = f"A context length of {blocks * BLOCK_TOKENS:,} would fit"
        more = f"; {_size(left)} are free in all, for {left // block_bytes * BLOCK_TOKENS:,} tokens"
        raise OutOfMemoryError(
            f"{has}: one sequence of {context_length:,} tokens needs {needed:,} ({_size(needed * block_bytes)})",
            hint=f"{fits}{more}.",
            param="context_length",
        )


def _size(count_bytes: int) -> str:
    return f"{count_bytes / 2**30:.2f} GiB" if count_bytes >= 2**30 else f"{count_bytes / 2**20:.1f} MiB"
