"""A model's directory as the registry takes it in: checked without torch, and only the files that belong to a model."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from llmos.errors import ModelError
from llmos.files import sync_directory
from llmos.models import ModelConfig, Tokenizer
from llmos.models.encoder_config import LENGTH_FILE, MODULES_FILE, POOLING_FILE, EncoderConfig, is_encoder
from llmos.models.encoder_tokenizer import EncoderTokenizer
from llmos.models.encoder_weights import places
from llmos.models.quantization import Quantization
from llmos.models.weight_files import COPY_AGAIN, absent, opened, weight_paths

KNOWN = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "model*.safetensors", "model.safetensors.index.json", "lineage.json", "README.md"),
    *("LICENSE", "LICENSE.*"),
    *(MODULES_FILE, LENGTH_FILE, "config_sentence_transformers.json"),
)
KNOWN_BELOW = (POOLING_FILE,)
_DTYPES = ("F32", "BF16", "F16")
_QUANTIZED = ("I8", "I32", "I64")
_WHOLE = ".weight_shape"


def files(directory: Path) -> list[Path]:
    """The files of the model in ``directory``, links resolved.

    Raises ModelError if there is no such directory, or if a link or a special file would let other files in.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory: expected a model in the Hugging Face layout", param="path")
    found = [path for path in sorted(directory.iterdir()) if any(fnmatchcase(path.name, known) for known in KNOWN)]
    found += [directory / known for known in KNOWN_BELOW if os.path.lexists(directory / known)]
    for path in found:
        if not _inside(directory, path).is_file():
            raise ModelError(f"{path} is not a file", hint="Check the path.", param="path")
    return found


def inspect(directory: Path) -> ModelConfig | EncoderConfig:
    """The shape of a whole, supported model. Raises ModelError, naming the file and what was expected."""
    if is_encoder(directory):
        encoder = EncoderConfig.load(directory)
        _check_vocabulary(directory, EncoderTokenizer.load(directory).vocab_size, encoder.vocab_size)
        places(directory, encoder)
        return encoder
    return inspect_decoder(directory)


def inspect_decoder(directory: Path) -> ModelConfig:
    """:func:`inspect` for a model that generates. Raises ModelError also for an encoder."""
    names = {path.name for path in files(directory)}
    config = ModelConfig.load(directory)
    _check_vocabulary(directory, Tokenizer.load(directory).vocab_size, config.vocab_size)
    weights = weight_paths(directory)
    if missing := [path for path in weights if path.name not in names]:
        raise absent(missing[0])
    quantization = Quantization.load(directory)
    shapes = {name: shape for path in weights for name, shape in _shapes(path, quantization).items()}
    if quantization is not None:
        shapes = _unpacked(directory, shapes, quantization)
    found = sum(prod(shape) for name, shape in shapes.items() if not _derived(name, config))
    if found != config.num_parameters:
        expected = f"config.json calls for {config.num_parameters:,}"
        raise ModelError(f"{directory}: the weights have {found:,} parameters; {expected}", hint=COPY_AGAIN)
    return config


def copy(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy the model's files into the existing directory ``target``, durably.

    ``link``: share their storage where the file system can; for sources that nobody changes.
    """
    for path in files(source):
        copied = target / path.relative_to(source)
        copied.parent.mkdir(exist_ok=True)
        if not (link and _linked(path, copied)):
            _copy_file(_inside(source, path), copied)
        with copied.open("rb") as file:
            os.fsync(file.fileno())
        sync_directory(copied.parent)
    sync_directory(target)


def _inside(directory: Path, path: Path) -> Path:
    """``path`` with links resolved. Raises ModelError if they lead out of its directory."""
    target = path.resolve()
    if target.parent != directory.resolve() / path.parent.relative_to(directory):
        hint = "Copy it with its links resolved first: `cp -rL`."
        raise ModelError(f"{path} is a link out of its directory: expected a file", hint=hint, param="path")
    return target


def _check_vocabulary(directory: Path, tokens: int, known: int) -> None:
    if tokens > known:
        what = f"{directory}: the tokenizer has {tokens} tokens, the model {known}"
        raise ModelError(f"{what}; expected at most as many", hint=COPY_AGAIN)


def _shapes(path: Path, quantization: Quantization | None) -> dict[str, tuple[int, ...]]:
    """Shape by tensor; of a packed matrix also the one it stands for, by ``weight_shape``.

    Only headers and those shapes are read; the library refuses a file that is shorter than it says.
    """
    with opened(path, "np") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        kinds = {name: part.get_dtype() for name, part in parts.items()}
        shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
        if quantization is not None:
            shapes |= {name: tuple(file.get_tensor(name).tolist()) for name in shapes if name.endswith(_WHOLE)}
    allowed = _DTYPES if quantization is None else (*_DTYPES, *_QUANTIZED)
    for name, kind in kinds.items():
        if kind not in allowed:
            what = f"{path}: {name} has type {kind}; expected {', '.join(allowed)}"
            raise ModelError(what, hint="Use the original model, in plain floats.")
    return shapes


def _unpacked(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], quantization: Quantization
) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that quantized ones stand for; scales stand for none."""
    found = dict[str, tuple[int, ...]]()
    for name, shape in shapes.items():
        matrix, _, part = name.rpartition(".")
        if part == "weight_packed":
            found[matrix] = shapes.get(f"{matrix}{_WHOLE}", (0, 0))
            if (scheme := quantization.scheme(matrix)) is None:
                what = f"{directory}: {name} is there, but by config.json {matrix} is not quantized"
                raise ModelError(f"{what}; expected plain weights", hint=COPY_AGAIN)
            rows, columns = found[matrix]
            if shape != (rows, -(-columns * scheme.bits // 32)):
                what = f"{directory}: {name} has shape {list(shape)}, which does not hold {rows} × {columns} values"
                raise ModelError(f"{what} of {scheme.bits} bits in words of 32", hint=COPY_AGAIN)
        elif part not in ("weight_shape", "weight_scale"):
            found[name] = shape
    return found


def _derived(name: str, config: ModelConfig) -> bool:
    """Whether a tensor follows from others: rotary frequencies, and the second copy of a tied matrix."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight")


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
        return True
    except OSError:  # another file system, or one without hard links
        return False


def _copy_file(source: Path, target: Path) -> None:
    # not following links: it or its directory may have become one since they were looked at
    directory = os.open(source.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(source.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    finally:
        os.close(directory)
    with os.fdopen(descriptor, "rb") as reader, target.open("xb") as writer:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ModelError(f"{source} is not a file", hint="Check the path.", param="path")
        shutil.copyfileobj(reader, writer, 1 << 20)
