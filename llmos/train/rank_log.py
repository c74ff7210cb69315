"""What a rank writes, as lines of the attempt's log: each with its rank, and with secrets blacked out."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmos.redact import Redactor


class _Lines(io.TextIOBase):
    """A text stream that appends whole lines to a file which other processes append to as well."""

    def __init__(self, path: Path, prefix: str, redactor: Redactor) -> None:
        # O_APPEND: each write lands at the end in one piece, so lines of several ranks never mix
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._prefix, self._redactor, self._rest = prefix, redactor, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            # a progress bar overwrites its line with carriage returns: the last state is the one to keep
            shown = self._redactor.redact(line.rstrip("\r").rsplit("\r", 1)[-1])
            os.write(self._file, f"{self._prefix}{shown}\n".encode(errors="replace"))
        return len(text)

    def close(self) -> None:
        if not self.closed:
            if self._rest:
                self.write("\n")
            os.close(self._file)
        super().close()


@contextlib.contextmanager
def rank_log(path: Path, rank: int, secrets: Iterable[str]) -> Iterator[None]:
    """Send what this process prints and logs to ``path``: llmos from level INFO on, everybody else from WARNING on."""
    stream = _Lines(path, f"[rank {rank}] ", Redactor(secrets))
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root, ours = logging.getLogger(), logging.getLogger("llmos")
    others, root.handlers = root.handlers, [handler]  # Ray's would write every line a second time
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers = others
        stream.close()
