"""``llmos compress``: where the model comes from, and where the smaller one goes. On this machine, without Ray."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from llmos.control import model_files
from llmos.errors import ConflictError, DataError, NotFoundError, UsageError
from llmos.files import sync_directory, write_atomic
from llmos.spec.base import check_name

if TYPE_CHECKING:
    from llmos.client import Client

Connect = Callable[[], "Client"]
Progress = Callable[[int, int], None]

_WRITTEN_ANEW = ("config.json", "lineage.json", "README.md")


def compress(
    model: str,
    bits: int,
    connect: Connect,
    progress: Progress,
    *,
    group: int | None = None,
    keep_output: bool = False,
    out: Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Quantize ``model``, a directory or ``name[@version]`` of the cluster that ``connect`` reaches, to ``bits``.

    The output matrix goes to 8 bits, whatever ``bits``; with ``keep_output`` it stays as it is.
    The result goes to the new directory ``out``, or else becomes a model of the cluster: ``name``, by default the
    registered model's with ``-int8`` or ``-int4`` after it. Returns the original, the bits, the errors and the sizes,
    and ``path`` or ``model`` (its ``name@version``). Raises UsageError, NotFoundError, ConflictError, ModelError,
    DataError.
    """
    if out is not None and name is not None:
        raise UsageError("`--out` and `--name`: expected one of them", hint="Register the directory afterwards.")
    source, source_name = _source(model, connect)
    write = partial(_write, source, source_name, progress, bits=bits, group=group, keep_output=keep_output)
    if out is not None:
        return write(out.absolute()) | {"path": str(out)}
    new = name or _default_name(source_name, bits)
    try:
        check_name(new)
    except ValueError as error:
        raise UsageError(str(error), hint="Name it with `--name`.", param="--name") from None
    with tempfile.TemporaryDirectory(prefix="llmos-compress-") as temporary:
        directory = Path(temporary) / new
        return write(directory) | {"model": connect().import_model(new, directory).ref}


def _source(model: str, connect: Connect) -> tuple[Path, str]:
    """The model's directory, and what to call it: ``name@version``, or the directory's path."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path, str(path.absolute())
    if "/" in model:
        what = f"no directory `{model[:200]}`: expected one with a model (config.json), or `name@version`"
        raise NotFoundError(what, hint="Check the path.", param="MODEL")
    found = connect().model(model)
    directory = Path(str(found["path"]))
    if not (directory / "config.json").is_file():
        what = f"{found.ref} lies in {directory} on the head node, which cannot be read from this machine"
        hint = f"Run it there, or export it to storage that both see: `llmos models export {found.ref} DIR`."
        raise NotFoundError(what, hint=hint, param="MODEL")
    return directory, found.ref


def _default_name(source_name: str, bits: int) -> str:
    if "/" in source_name:
        what = "the model is a directory: expected `--out DIR`, to write to, or `--name NAME`, to register"
        raise UsageError(what, hint="Say where the result goes.", param="--out")
    return f"{source_name.partition('@')[0]}-int{bits}"


def _write(
    source: Path,
    source_name: str,
    progress: Progress,
    target: Path,
    *,
    bits: int,
    group: int | None,
    keep_output: bool,
) -> dict[str, Any]:
    """Write the quantized model to ``target``, which appears whole or not at all."""
    from llmos.compress import card, quantize  # load torch
    from llmos.models.digest import digest

    config = model_files.inspect_decoder(source)
    quantization = quantize.quantization_for(config, bits, group, keep_output=keep_output)
    with _appearing(target) as directory:
        for path in model_files.files(source):
            if path.name not in _WRITTEN_ANEW and not path.name.startswith("model"):
                write_atomic(directory / path.name, path.read_bytes())
        errors = quantize.quantize_weights(source, directory, quantization, progress)
        sizes = card.size_of_weights(source), card.size_of_weights(directory)
        done = card.Compressed(source_name, digest(source), quantization, errors, *sizes)
        card.write_about(done, source, directory)
    return done.to_json()


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A directory that becomes ``target`` at the end of the block; an error leaves nothing of it.

    Raises ConflictError if there is something in its place, DataError when it cannot be written.
    """
    if target.exists() or target.is_symlink():
        what = f"`{target}` exists: expected a path where nothing is"
        raise ConflictError(what, hint="Name another.", param="--out")
    directory = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        directory.chmod(0o755)
        yield directory
        sync_directory(directory)
        directory.rename(target)
        sync_directory(target.parent)
    except (OSError, SafetensorError) as error:
        what = f"cannot write `{target}`: {getattr(error, 'strerror', None) or error}"
        raise DataError(what, hint="Check the room there, and its permissions.", param="--out") from error
    finally:
        if directory is not None:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory)
