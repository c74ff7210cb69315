"""The registry: versions of models, each a directory that is there whole or not at all.

``models/<name>/.<version>`` is a version on its way in or out; the store says which. So a crash at any moment is put
right when the registry is opened: what the store knows moves in, everything else goes.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmos.control import model_files
from llmos.control.card import model_card
from llmos.control.store import Store
from llmos.errors import ConflictError, DataError, ModelError, NotFoundError, UsageError
from llmos.files import read_json, sync_directory, write_atomic, write_json
from llmos.layout import Layout
from llmos.models import ModelConfig
from llmos.models.digest import digest as digest_of
from llmos.models.encoder_config import EncoderConfig
from llmos.spec.base import check_name, is_alias

Row = dict[str, Any]


class Registry:
    """Models under ``layout.models``. One process may have it open. Safe to use from any thread."""

    def __init__(self, layout: Layout, store: Store, clock: Callable[[], float]) -> None:
        self._layout = layout
        self._store = store
        self._clock = clock
        self._entering = threading.Lock()
        self._put_right()

    def all(self) -> list[Row]:
        """Every version, by name, then by version."""
        aliases = self._store.aliases.all()
        return [self._view(row, aliases) for row in self._store.models.all()]

    def get(self, ref: str) -> Row:
        """The version that ``name@version``, ``name@alias`` or ``name`` (its newest) means. Raises NotFoundError."""
        return self._view(self._store.models.find(ref))

    def register(self, job: str) -> str | None:
        """Make a job's export a version of its output model and return its ``name@version``; again: the same one.
        None for a job that has no ``output``.

        Raises ModelError when the export is missing, not whole, or has no lineage.
        """
        if known := self._store.models.of_job(job):
            return _ref(known)
        output = self._store.jobs.find(job)["spec"].get("output")
        if output is None:
            return None
        export = self._layout.job(job).export
        lineage = _lineage(export)
        if lineage is None:
            raise ModelError(f"job {job} left no model in {export}: expected config.json, weights and lineage.json")
        return _ref(self._enter(output["model"], export, {**lineage, "job": job}, job=job))

    def adopt(self, name: str, export: Path) -> str:
        """Make ``export``, trained without the control module, a version of ``name`` and return its ``name@version``;
        the same files again: the same one. Raises ModelError when they are not a whole model."""
        digest = digest_of(export)
        for row in self._store.models.all():
            if (row["name"], row["digest"]) == (name, digest):
                return _ref(row)
        lineage = {**(_lineage(export) or {}), "imported_from": str(export)}
        return _ref(self._enter(name, export, lineage, job=None))

    def import_model(self, name: str, path: str) -> Row:
        """Copy the Hugging Face directory ``path`` in as a new version of ``name``. Raises UsageError, ModelError."""
        try:
            check_name(name)
        except ValueError as error:
            raise UsageError(str(error), param="name") from None
        source = _absolute(path)
        try:
            if not source.exists():
                raise NotFoundError(f"no directory `{path}` on the head node", hint="check the path", param="path")
            model_files.files(source)  # before anything is opened there
            original = _lineage(source)  # a stranger's: kept, not mixed with what is known
            lineage = {"imported_from": str(source), **({"original": original} if original else {})}
            return self._view(self._enter(name, source, lineage, job=None))
        except OSError as error:
            what = f"cannot import `{path[:500]}`: {error.strerror or error}"
            hint = "check its permissions, and the room in the state directory"
            raise DataError(what, hint=hint, param="path") from error

    def export(self, ref: str, path: str) -> Row:
        """Copy a version's files to the new directory ``path``. Raises NotFoundError, ConflictError, DataError."""
        row, target = self._store.models.find(ref), _absolute(path)
        try:
            if target.exists() or target.is_symlink():
                what = f"`{path}` exists: expected a path where nothing is"
                raise ConflictError(what, hint="name another", param="path")
            if not target.parent.is_dir():
                raise NotFoundError(f"no directory `{target.parent}` on the head node", hint="create it", param="path")
            with _temporary(target.parent) as temporary:
                model_files.copy(self._path(row), temporary)
                temporary.rename(target)
                sync_directory(target.parent)
        except OSError as error:
            raise DataError(f"cannot write `{path[:500]}`: {error.strerror or error}", param="path") from error
        return self._view(row) | {"path": str(target)}

    def remove(self, ref: str) -> None:
        """Delete one version. Raises NotFoundError, ConflictError while it is used, UsageError without a version."""
        if "@" not in ref:
            raise UsageError(f"`{ref}`: expected `name@version`", hint="only one version at a time is removed")
        row = self._store.models.remove(ref, self._clock())
        self._delete(self._path(row))

    def set_alias(self, name: str, alias: str, target: str) -> Row:
        """Have ``name@alias`` mean the version that ``target`` does. Raises UsageError, NotFoundError, and
        ConflictError if that is another model's."""
        _check_alias(alias)
        target = f"{name}@{target}" if target.isdecimal() else target
        self._store.aliases.set(name, alias, target, self._clock())
        return self.alias(name, alias)

    def rollback_alias(self, name: str, alias: str) -> Row:
        """Have ``name@alias`` mean what it did before. Raises NotFoundError, ConflictError."""
        self._store.aliases.undo(name, alias, self._clock())
        return self.alias(name, alias)

    def remove_alias(self, name: str, alias: str) -> None:
        """Raises NotFoundError, ConflictError while a service follows it."""
        self._store.aliases.remove(name, alias, self._clock())

    def alias(self, name: str, alias: str) -> Row:
        """The version that it means, with all that it ever meant: ``history`` of {version, created_at, undone_at}."""
        told = ("version", "created_at", "undone_at")
        history = [{key: row[key] for key in told} for row in self._store.aliases.history(name, alias)]
        return self.get(f"{name}@{alias}") | {"alias": f"{name}@{alias}", "history": history}

    def _enter(self, name: str, source: Path, lineage: Row, *, job: str | None) -> Row:
        config = model_files.inspect(source)
        home = self._layout.models / name
        home.mkdir(parents=True, exist_ok=True)
        with _temporary(home) as temporary:
            model_files.copy(source, temporary, link=job is not None)
            write_json(temporary / "lineage.json", lineage)
            digest = digest_of(temporary)
            with self._entering:
                if job and (known := self._store.models.of_job(job)):
                    return known
                row = {
                    **{"name": name, "version": self._next_version(name), "digest": digest, "job": job},
                    **{"parameters": config.num_parameters, "size_bytes": _size(temporary), "lineage": lineage},
                    **{"created_at": self._clock(), "removed_at": None},
                }
                self._settle(temporary, row, config)
        return row

    def _settle(self, temporary: Path, row: Row, config: ModelConfig | EncoderConfig) -> None:
        """From a complete temporary directory to a version: hidden in place, known to the store, visible."""
        target, ref = self._path(row), _ref(row)
        if not (temporary / "README.md").exists():
            card = model_card(ref, config, row["digest"], row["lineage"])
            write_atomic(temporary / "README.md", card.encode())
        if _hidden(target).exists():  # the store would know it, had it come all the way
            shutil.rmtree(_hidden(target))
        temporary.rename(_hidden(target))
        sync_directory(target.parent)
        why = f"from job {row['job']}" if row["job"] else f"imported from {row['lineage']['imported_from']}"
        self._store.models.add(row, why)
        _hidden(target).rename(target)
        sync_directory(target.parent)

    def _next_version(self, name: str) -> int:
        """Skips directories that the store does not know: they may be all that is left of an older database."""
        version = self._store.models.next_version(name)
        while self._layout.model(name, version).exists():
            version += 1
        return version

    def _put_right(self) -> None:
        """Finish what a crash has interrupted."""
        expected = {self._path(row) for row in self._store.models.all()}
        for entry in filter(Path.is_dir, self._layout.models.glob("*/.*")):
            target = entry.with_name(entry.name.removeprefix("."))
            if target in expected and not target.exists():
                entry.rename(target)
            else:
                shutil.rmtree(entry)
        for row in self._store.models.removed():
            self._delete(self._path(row))

    def _delete(self, path: Path) -> None:
        """Out of sight in one step, then gone."""
        if path.exists():
            path.rename(_hidden(path))
            shutil.rmtree(_hidden(path))

    def _path(self, row: Mapping[str, Any]) -> Path:
        return self._layout.model(row["name"], row["version"])

    def _view(self, row: Mapping[str, Any], aliases: Mapping[tuple[str, str], int] | None = None) -> Row:
        shown = ("name", "version", "digest", "created_at", "size_bytes", "parameters", "lineage")
        found = self._store.aliases.all() if aliases is None else aliases
        named = [alias for (name, alias), version in found.items() if (name, version) == (row["name"], row["version"])]
        view = {"ref": _ref(row), **{name: row[name] for name in shown}, "path": str(self._path(row))}
        return view | {"aliases": sorted(named)}


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A directory beside its later place; gone at the end of the block unless it was renamed."""
    path = Path(tempfile.mkdtemp(dir=parent, prefix=".incoming-"))
    try:
        path.chmod(0o755)
        yield path
    finally:
        if path.exists():
            shutil.rmtree(path)


def _ref(row: Mapping[str, Any]) -> str:
    return f"{row['name']}@{row['version']}"


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _lineage(directory: Path) -> Row | None:
    """What lineage.json in ``directory`` says, if it is there. Raises ModelError if it is not a JSON object."""
    path = directory / "lineage.json"
    try:
        found = read_json(path)
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", hint="Remove it, or copy the model again.") from error
    if found is not None and not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object", hint="Remove it, or copy the model again.")
    return found


def _check_alias(alias: str) -> None:
    if not is_alias(alias):
        what = f"`{alias[:80]}` is not an alias: expected lower-case letters, digits, `.`, `_` or `-` after a letter"
        raise UsageError(what, hint="as in `coder@prod`", param="alias")


def _absolute(path: str) -> Path:
    if "\0" in path or not Path(path).is_absolute():
        raise UsageError(f"`{path[:200]!r}` is not an absolute path on the head node", param="path")
    return Path(path)
