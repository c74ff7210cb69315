"""What happens to a job in the middle of an attempt, for its log and for ``llmos describe``."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from llmos.files import append_json

log = logging.getLogger("llmos.train")


def record(path: Path, what: str, why: str) -> None:
    """Append an event to ``path``, ``events.jsonl`` of the attempt, and say it in the log. Call it on rank 0 only."""
    log.warning("%s: %s", what.upper().replace("_", " "), why)
    append_json(path, {"at": time.time(), "what": what, "why": why})
