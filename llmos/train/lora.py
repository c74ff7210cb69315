"""LoRA: matrices that stay as they are, with small ones beside them that are trained (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from llmos.files import sync_directory, write_json
from llmos.models import Transformer
from llmos.spec import Lora


class LoraLinear(nn.Linear):
    """y = x · Wᵀ + alpha / rank · (x · Aᵀ) · Bᵀ with W [out, in] frozen, A [rank, in] random and B [out, rank] zero.

    So it begins as the matrix that it replaces, and W keeps its name.
    """

    def __init__(self, base: nn.Linear, spec: Lora) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=False)
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        self.bias = base.bias
        self.scale = spec.alpha / spec.rank
        # as nn.Linear, and the reference code; on the CPU, so that every kind of device gets the same
        drawn = nn.init.kaiming_uniform_(torch.empty(spec.rank, base.in_features), a=math.sqrt(5))
        self.lora_A = nn.Parameter(drawn.to(self.weight))
        self.lora_B = nn.Parameter(self.weight.new_zeros(base.out_features, spec.rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The matrix that does the same alone, [out, in]."""
        return self.weight + self.lora_B @ self.lora_A * self.scale


def add_adapters(model: Transformer, spec: Lora, seed: int) -> None:
    """Freeze ``model`` and put adapters, which ``seed`` determines, beside its target matrices."""
    model.requires_grad_(False)
    torch.manual_seed(seed)
    for path, module in list(model.model.layers.named_modules()):
        parent, _, name = path.rpartition(".")
        if isinstance(module, nn.Linear) and name in spec.targets:
            setattr(model.model.layers.get_submodule(parent), name, LoraLinear(module, spec))


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
