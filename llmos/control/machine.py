"""What this machine has, as far as the processes that run here may use it."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of version 2 and 1, as a container sees its own."""


def memory_bytes() -> int:
    """The machine's memory, or what this container may have of it if that is less."""
    limits = [int(text) for path in _CGROUP_LIMITS if (text := _text(path)).isdigit()]
    return min([int(psutil.virtual_memory().total), *limits])


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
