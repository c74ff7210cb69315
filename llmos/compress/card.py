"""What a quantized model says of itself: README.md and lineage.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmos.compress.quantize import Errors
from llmos.files import read_json, write_atomic, write_json
from llmos.models.quantization import LINEAR, OUTPUT, Quantization, Scheme


@dataclass(frozen=True, slots=True)
class Compressed:
    """What was done: ``source`` is the original's name, sizes are those of the weights' files."""

    source: str
    source_digest: str
    quantization: Quantization
    errors: Errors
    original_bytes: int
    size_bytes: int

    @property
    def layers(self) -> Scheme:
        """How the linears of the layers are quantized."""
        return self.quantization.schemes[LINEAR]

    def to_json(self) -> dict[str, Any]:
        """For programs, and for lineage.json."""
        return {
            "compressed_from": self.source,
            "compressed_from_digest": self.source_digest,
            "bits": self.layers.bits,
            "group_size": self.layers.group or None,
            "output_bits": None if (output := self.quantization.scheme(OUTPUT)) is None else output.bits,
            "relative_error": self.errors.whole,
            "worst_relative_error": self.errors.worst,
            "worst_matrix": self.errors.worst_matrix,
            "original_bytes": self.original_bytes,
            "size_bytes": self.size_bytes,
        }


def size_of_weights(directory: Path) -> int:
    """Bytes of the safetensors files in ``directory``."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def write_about(done: Compressed, source: Path, target: Path) -> None:
    """Write the card and the lineage to ``target``; those in ``source`` become part of them."""
    original = read_json(source / "lineage.json")
    lineage = done.to_json() | ({"original": original} if isinstance(original, dict) else {})
    write_json(target / "lineage.json", lineage)
    card = source / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    write_atomic(target / "README.md", _card(done, text).encode())


def _card(done: Compressed, original: str) -> str:
    meta, text = _front_matter(original)
    meta = {**meta, "library_name": "transformers", "pipeline_tag": "text-generation"}
    meta["tags"] = sorted({*map(str, meta.get("tags") or ()), "compressed-tensors", f"int{done.layers.bits}"})
    facts = {
        "made from": f"{done.source} (digest `{done.source_digest}`)",
        "weights": _weights(done.quantization),
        "size": f"{done.size_bytes / 1e6:,.1f} MB, of {done.original_bytes / 1e6:,.1f} MB",
        "error": f"{done.errors.whole:.4f} of the weights (root mean square); "
        f"at most {done.errors.worst:.4f}, in `{done.errors.worst_matrix}`",
        "layout": "compressed-tensors: for llmos, vLLM and transformers",
    }
    rows = "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts.items())])
    head = f"---\n{yaml.safe_dump(meta, allow_unicode=True)}---\n\n# {_cell(done.source)}, int{done.layers.bits}"
    return "\n\n".join([head, rows, *(["## The original's card", text] if text else [])]) + "\n"


def _weights(quantization: Quantization) -> str:
    kept = "embeddings, norms" + (f" and `{OUTPUT}`" if quantization.scheme(OUTPUT) is None else "")
    return f"{quantization}, rounded to nearest; {kept} as they were"


def _front_matter(card: str) -> tuple[Mapping[str, Any], str]:
    """The metadata at the head of a card, and the rest of it."""
    if card.startswith("---\n") and "\n---" in card[4:]:
        head, _, rest = card[4:].partition("\n---")
        try:
            meta = yaml.safe_load(head)
        except yaml.YAMLError:
            return {}, card.strip()
        if isinstance(meta, dict):
            return meta, rest.strip()
    return {}, card.strip()


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
