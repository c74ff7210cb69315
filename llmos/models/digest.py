"""The identity of a model's files. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmos.errors import ModelError
from llmos.models.encoder_config import POOLING_FILE

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", POOLING_FILE)
_ABOUT_THE_MODEL = "lineage.json"


def digest(directory: str | Path) -> str:
    """SHA-256 (hex) over the names and contents of the files that make the model in ``directory`` what it is.

    These are its weights, configuration, tokenizer, chat template and pooling; not its card, nor its lineage.
    """
    directory, whole = Path(directory), hashlib.sha256()
    paths = {path for pattern in _MODEL_FILES for path in directory.glob(pattern) if path.name != _ABOUT_THE_MODEL}
    if not paths:
        raise ModelError(f"there is no model in {directory}: expected config.json and weights", hint="Check the path.")
    for name, path in sorted((path.relative_to(directory).as_posix(), path) for path in paths):
        with path.open("rb") as file:
            whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
