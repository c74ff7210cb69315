"""The files that a path names, wherever it points: this file system, or any URI that pyarrow or fsspec opens.

A name is a path, or a URI with its scheme; names go between processes, file systems are made where they are used.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

import fsspec
import fsspec.utils
import pyarrow as pa
from pyarrow import fs

from llmos.errors import DataError, NotFoundError
from llmos.spec.data import is_uri

_OF_PYARROW = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_BUFFER_BYTES = 2**20
_CHECK = "Check data.path."


def find(path: str) -> list[str]:
    """The files that ``path`` names: itself, all below it, or what it matches as a glob (``**``: any depth); sorted.

    Names that start with a dot are found only when named. Raises NotFoundError for a path that does not exist,
    DataError when no file is there or its place cannot be reached.
    """
    local = _local(path)
    found = _find_here(local) if local else _find_elsewhere(path)
    if not found:
        what = f"no file matches {path}" if glob.has_magic(path) else f"there is no file below {path}"
        raise DataError(f"{what}: expected text", hint=_CHECK, param="data.path")
    return found


def size_bytes(name: str) -> int:
    """The size of the file ``name``. Raises DataError when it cannot be read."""
    with reading(name):
        local = _local(name)
        if local:
            return local.stat().st_size
        system, path = _file_system(name)
        return int(system.get_file_info(path).size or 0)


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """The file ``name``, open for reading, buffered and seekable. Raises DataError when it cannot be read."""
    with reading(name):
        local = _local(name)
        if local:
            with open(local, "rb", buffering=_BUFFER_BYTES) as file:
                yield file
        else:
            system, path = _file_system(name)
            with system.open_input_file(path) as native, io.BufferedReader(native, _BUFFER_BYTES) as buffered:
                yield cast(BinaryIO, buffered)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What a file system raises becomes a DataError that names the file."""
    try:
        yield
    except OSError as error:
        what = f"{name} cannot be read: {error.strerror or error}"
        raise DataError(what, hint="Check that it is there, and its permissions.", param="data.path") from error


def _local(name: str) -> Path | None:
    """The path of a name that lies on this file system."""
    if not is_uri(name):
        return Path(name).expanduser()
    parts = urlsplit(name)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _find_here(path: Path) -> list[str]:
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        pattern = f"{glob.escape(str(path))}/**"
    elif glob.has_magic(str(path)):
        pattern = str(path)
    else:
        raise _missing(str(path))
    return sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())


def _find_elsewhere(uri: str) -> list[str]:
    """As :func:`_find_here`, on a file system that cannot match globs: a listing is matched instead."""
    system, path = _file_system(uri)
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    with reading(uri):
        kind = system.get_file_info(path).type if fixed == path else None
        if kind == fs.FileType.File:
            return [uri]
        if kind == fs.FileType.NotFound:
            raise _missing(uri)
        top = path if fixed == path else fixed.rpartition("/")[0]
        listing = system.get_file_info(fs.FileSelector(top, recursive=True, allow_not_found=True))
    pattern = re.compile(fsspec.utils.glob_translate(f"{path.rstrip('/')}/**" if fixed == path else path))
    names = [info.path for info in listing if info.is_file and pattern.match(info.path)]
    return sorted(_renamed(uri, name) for name in names if not _hidden(name.removeprefix(top)))


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _renamed(uri: str, path: str) -> str:
    """The name of ``path`` on the file system of ``uri``, options in its query included."""
    query = urlsplit(uri).query
    return f"{urlsplit(uri).scheme}://{path.lstrip('/')}{'?' + query if query else ''}"


def file_system(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of ``uri`` and the path on it: pyarrow's own if it knows the scheme, else fsspec's.

    Raises ImportError, ValueError, OSError or ArrowException when it cannot be opened: see CANNOT_OPEN.
    """
    if urlsplit(uri).scheme in _OF_PYARROW:
        return cast(tuple[fs.FileSystem, str], fs.FileSystem.from_uri(uri))
    system, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), str(path)


CANNOT_OPEN = (ImportError, ValueError, OSError, pa.ArrowException)


@lru_cache(maxsize=64)
def _file_system(uri: str) -> tuple[fs.FileSystem, str]:
    """:func:`file_system`. Raises DataError."""
    try:
        return file_system(uri)
    except CANNOT_OPEN as error:
        hint = "Expected a path, or a URI that pyarrow or fsspec can open."
        raise DataError(f"{uri} cannot be opened: {error}", hint=hint, param="data.path") from error


def _missing(path: str) -> NotFoundError:
    what = f"there is no {path}: expected a file, a directory or a glob of text"
    return NotFoundError(what, hint=_CHECK, param="data.path")
