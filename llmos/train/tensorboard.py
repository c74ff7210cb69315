"""Rows of metrics as TensorBoard event files, written by a thread: a step pays for handing over its row.

tensorboardX writes the format without TensorBoard, of which it is no part; Ray Train needs it anyway.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path

FLUSH_INTERVAL_S = 5.0
"""How late somebody who is watching sees a row."""
_X_AXES = ("step", "time_s")
_VALIDATION = ("validation_loss", "bits_per_byte")

Row = Mapping[str, float]


class TensorBoard:
    """Writes rows into ``directory``, one event each, with the tags ``train/…`` and ``validation/…``."""

    def __init__(self, directory: Path) -> None:
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(directory,), name="tensorboard", daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        """Hand over the row of a step."""
        self._rows.put(row)

    def close(self) -> None:
        """Wait until everything is in the file."""
        self._rows.put(None)
        self._thread.join()

    def _run(self, directory: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # loads half a second long, beside the first step
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        directory.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        while True:
            try:
                row = self._rows.get(timeout=FLUSH_INTERVAL_S)
            except queue.Empty:
                writer.flush()
                continue
            if row is None:
                break
            values = [Summary.Value(tag=tag(name), simple_value=row[name]) for name in row if name not in _X_AXES]
            writer.write_event(Event(wall_time=row["time_s"], step=int(row["step"]), summary=Summary(value=values)))
        writer.close()


def tag(name: str) -> str:
    """What the metric ``name`` is called in TensorBoard, which groups by what stands before the slash."""
    return f"validation/{name.removeprefix('validation_')}" if name in _VALIDATION else f"train/{name}"
