"""Adapters of a whole model: where they are, what is trained, and what is left of them (``models/adapter.py``)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from llmos.files import sync_directory, write_json
from llmos.models import Transformer
from llmos.models.adapter import LoraLinear
from llmos.spec import Lora


def add_adapters(model: Transformer, spec: Lora, seed: int) -> None:
    """Freeze ``model`` and put adapters, which ``seed`` determines, beside its target matrices."""
    model.requires_grad_(False)
    torch.manual_seed(seed)
    for path, module in list(model.model.layers.named_modules()):
        parent, _, name = path.rpartition(".")
        if isinstance(module, nn.Linear) and name in spec.targets:
            setattr(
                model.model.layers.get_submodule(parent), name, LoraLinear(module, spec.rank, spec.alpha / spec.rank)
            )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, and so saved: all parameters, or those of adapters."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merged(model: Transformer) -> Transformer:
    """``model`` without adapters: a new one that computes the same. What has no adapter is shared with it."""
    adapted = {f"{name}.weight": m.merged() for name, m in model.named_modules() if isinstance(m, LoraLinear)}
    with torch.device("meta"):
        plain = Transformer(model.config)
    found = {**dict(model.named_parameters()), **adapted}
    plain.load_state_dict({name: found[name].detach() for name, _ in plain.named_parameters()}, assign=True)
    return plain


def save_adapter(model: Transformer, spec: Lora, base: str, directory: Path) -> None:
    """Write the adapters alone to ``directory``, in the layout of Hugging Face's PEFT; ``base`` names the model."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}.weight": parameter.detach().cpu().contiguous()
        for name, parameter in trainable(model).items()
    }
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(spec.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(directory / "adapter_config.json", config)
    sync_directory(directory)
