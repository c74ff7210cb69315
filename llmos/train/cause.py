"""Why an attempt ended, when several ranks have something to say: most of them only that another one is gone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmos.errors import LlmosError, WorkerLost, from_json
from llmos.files import read_json


def leave(path: Path, error: LlmosError) -> None:
    """Write ``error`` down at ``path`` unless another rank was first, or it only says that another rank is gone."""
    if isinstance(error, WorkerLost):
        return
    part = path.with_name(f"{path.name}-{os.getpid()}")
    with suppress(OSError):  # the disk is full, say: then whoever started the ranks has the error they raise
        part.write_text(json.dumps(error.to_json()))
        with suppress(FileExistsError):
            os.link(part, path)  # unlike a rename, it never replaces what is there
        part.unlink()


def left(path: Path) -> LlmosError | None:
    """What :func:`leave` wrote down, if it did."""
    found = read_json(path)
    return from_json(found) if found else None


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Ranks that end because another did raise what that one has left at ``path``; any other error is left there."""
    try:
        yield
    except WorkerLost as error:
        raise _awaited(path) or error from error
    except LlmosError as error:
        leave(path, error)
        raise


def _awaited(path: Path) -> LlmosError | None:
    """What is left at ``path``, where storage that ranks share may show it a moment later."""
    for _ in range(10):
        if found := left(path):
            return found
        time.sleep(0.1)
    return None
