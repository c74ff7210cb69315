"""README.md of a registered model: what it was made from and how well it does, for people and for model hubs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from llmos.models import ModelConfig
from llmos.models.encoder_config import EncoderConfig


def model_card(ref: str, config: ModelConfig | EncoderConfig, digest: str, lineage: Mapping[str, Any]) -> str:
    """Markdown with the metadata that the Hugging Face hub reads."""
    facts = {
        "parameters": f"{config.num_parameters:,}",
        "digest": f"`{digest}`",
        "job": lineage.get("job"),
        "imported from": lineage.get("imported_from"),
        "base model": lineage.get("base_model"),
        "data digest": (lineage.get("data") or {}).get("digest"),
        "training tokens": (lineage.get("data") or {}).get("tokens"),
        "code": ", ".join(f"{name} {version}" for name, version in (lineage.get("code_version") or {}).items()),
        **(lineage.get("metrics") or {}),
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value not in (None, "")]
    task = "feature-extraction" if isinstance(config, EncoderConfig) else "text-generation"
    meta = {"library_name": "transformers", "pipeline_tag": task, "tags": ["llmos"]}
    parts = [f"---\n{yaml.safe_dump(meta)}---", f"# {ref}", "\n".join(["| | |", "|---|---|", *rows])]
    if spec := lineage.get("spec"):
        written = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
        parts.append(f"## The spec it was trained from\n\n```yaml\n{written}```")
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
