"""Records of usage on their way to the store: in files until the control module has them.

What :meth:`Ledger.add` has written survives a SIGKILL of this process at once (the kernel has it), and a power cut once
:meth:`Ledger.sync` has run, which is called many times a second. Records are sent in batches, each a file, the oldest
first; a file is deleted when the control module has answered that it has them. Who is killed in between sends them
again: the store knows requests by their ids, and counts none twice. A file belongs to whoever holds its lock, so that a
front door takes over what a dead one has left, and leaves a living one's alone.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from llmos.files import sync_directory
from llmos.usage import Record

BATCH = 1000
MAX_UNWRITTEN = 100_000
MAX_REMEMBERED = 10
"""Batches whose records need not be read again when they are sent. While nobody takes them, there may be many."""
_SUFFIX = ".jsonl"

_log = logging.getLogger(__name__)


class Batch:
    """A file of records that is, or was, appended to by the process that holds its lock."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._busy = threading.Lock()  # of the descriptor: it is synced in one thread and closed in another
        self.count = 0
        self._unsynced = self.broken = False
        self._known: list[Record] | None = [] if path.stat().st_size == 0 else None

    def append(self, record: Record) -> None:
        """Raises OSError. Then the file is ``broken``: it may end with half a line, and takes no more."""
        line = record.line()
        self.broken = True
        if os.write(self._descriptor, line) != len(line):
            raise OSError("there is no room for it")
        self.broken = False
        self.count += 1
        self._unsynced = True
        if self._known is not None:
            self._known.append(record)

    def sync(self) -> bool:
        """Make it durable; false if it was."""
        with self._busy:
            if not self._unsynced or self._descriptor < 0:
                return False
            self._unsynced = False
            os.fsync(self._descriptor)
            return True

    def forget(self) -> None:
        """Keep it in the file alone."""
        self._known = None

    def records(self) -> list[Record]:
        """What is in it. Half a line at its end was never acknowledged; other lines that cannot be read are told."""
        if self._known is not None:
            return [*self._known]
        found = []
        *lines, _half = self.path.read_bytes().split(b"\n")
        for line in lines:
            try:
                found.append(Record.read(line))
            except ValueError as error:
                _log.error("%s has a line that is no record of usage, and is not counted: %s", self.path, error)
        return found

    def remove(self) -> None:
        """It is not needed any more."""
        with self._busy:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


class Ledger:
    """The files in ``directory``. Methods may be called from any thread; one at a time takes and forgets."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._pages = threading.Lock()  # a file must not be turned into a batch while a line is on its way into it
        left = (_locked(path) for path in sorted(directory.glob(f"*{_SUFFIX}")))
        self._full: deque[Batch] = deque(batch for batch in left if batch is not None)
        self._open = self._new()
        self._unwritten: list[Record] = []
        self._lent: Batch | None = None

    def add(self, record: Record) -> None:
        """Keep ``record``. While the disk is full it is kept in memory, up to MAX_UNWRITTEN of them."""
        with self._pages:
            self._add(record)

    def _add(self, record: Record) -> None:
        if self._open.count >= BATCH or self._open.broken:
            self._turn_page()
        try:
            if self._open.broken:
                raise OSError("no file can be made")
            self._open.append(record)
        except OSError as error:
            full = len(self._unwritten) >= MAX_UNWRITTEN
            what = "is lost" if full else "is kept in memory"
            _log.error("usage of %s cannot be written to %s and %s: %s", record.id, self._directory, what, error)
            if not full:
                self._unwritten.append(record)

    def sync(self) -> None:
        """Make what was added durable."""
        with self._pages:
            batches = [*self._full, self._open]
        if sum(batch.sync() for batch in batches):
            sync_directory(self._directory)

    def take(self) -> list[Record]:
        """The oldest records, at most BATCH; the same ones until :meth:`forget`. Empty: there are none."""
        with self._pages:
            self._lent = None
            if self._unwritten:
                return self._unwritten[:BATCH]
            while (oldest := self._oldest()) is not None:
                if records := oldest.records():
                    self._lent = oldest
                    return records
                self._full.popleft().remove()
            return []

    def forget(self, records: list[Record]) -> None:
        """The store has ``records``, as :meth:`take` gave them last."""
        with self._pages:
            if self._lent is None:
                del self._unwritten[: len(records)]
            else:
                self._full.popleft().remove()

    def _oldest(self) -> Batch | None:
        if not self._full and self._open.count:
            self._turn_page()
        return self._full[0] if self._full else None

    def _turn_page(self) -> None:
        """Begin a new file, if that is possible."""
        with suppress(OSError):
            following = self._new()
            self._full.append(self._open)
            self._open = following
            if len(self._full) > MAX_REMEMBERED:
                self._full[-1].forget()

    def _new(self) -> Batch:
        while True:
            path = self._directory / f"{time.time_ns():020d}-{os.getpid()}{_SUFFIX}"
            path.touch(mode=0o600, exist_ok=False)
            if (batch := _locked(path)) is not None:
                return batch


def _locked(path: Path) -> Batch | None:
    """The file with its lock, None if somebody else has that, or has deleted it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return Batch(path, descriptor)
    except (BlockingIOError, FileNotFoundError):
        pass  # the lock, or the file, is another one's
    os.close(descriptor)
    return None
