"""Where rank 0 writes down each step: a line of ``metrics.jsonl`` at once, a TensorBoard event a little later."""

from __future__ import annotations

from llmos.files import append_json
from llmos.layout import AttemptDirs
from llmos.train.tensorboard import TensorBoard


class Metrics:
    """The rows of an attempt. With ``peak_tokens_per_s``, what the hardware could do at most, they say the MFU."""

    def __init__(self, attempt: AttemptDirs, peak_tokens_per_s: float | None) -> None:
        self._path, self._peak_tokens_per_s = attempt.metrics, peak_tokens_per_s
        self._tensorboard = TensorBoard(attempt.tensorboard)

    def write(self, row: dict[str, float]) -> None:
        """Write ``row`` down."""
        if self._peak_tokens_per_s:
            row = row | {"mfu": row["tokens_per_s"] / self._peak_tokens_per_s}
        append_json(self._path, row)
        self._tensorboard.write(row)

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._tensorboard.close()
