"""A small model on disk, quantized in the layout of compressed-tensors, and what its weights are then."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmos.models import Transformer, weights
from llmos.models.packed_layout import dequantize, pack
from llmos.models.quantization import LINEAR, OUTPUT, Quantization, Scheme


def linears(bits: int, group: int = 0, packed: bool = True) -> Quantization:
    """One scheme for the linears of the layers; the output matrix stays as it is."""
    return Quantization({LINEAR: Scheme(bits, group, packed)}, (OUTPUT,))


INT4 = Quantization({LINEAR: Scheme(4, 32), OUTPUT: Scheme(8)})
"""As `llmos compress --int4` makes it."""


def write_quantized(model: Transformer, directory: Path, quantization: Quantization) -> Transformer:
    """Write it to ``directory``. Returns the model whose weights are the quantized ones."""
    weights.save_model(model, directory)
    tensors, nearest = load_file(directory / "model.safetensors"), copy.deepcopy(model)
    for name, module in nearest.named_modules():
        scheme = quantization.scheme(name) if isinstance(module, nn.Linear) else None
        if scheme is None:
            continue
        weight_OI = tensors.pop(f"{name}.weight")
        weight_OGC = weight_OI.unflatten(1, (scheme.groups(weight_OI.shape[1]), -1))
        largest = 2 ** (scheme.bits - 1) - 1
        scale_OG = (weight_OGC.abs().amax(-1) / largest).bfloat16()
        values_OGC = (weight_OGC / scale_OG[..., None].float()).round().clamp(-largest, largest)
        values_OI = values_OGC.flatten(1).to(torch.int8)
        if scheme.packed:
            tensors[f"{name}.weight_packed"] = pack(values_OI, scheme.bits)
            tensors[f"{name}.weight_shape"] = torch.tensor(weight_OI.shape)
        else:
            tensors[f"{name}.weight"] = values_OI
        tensors[f"{name}.weight_scale"] = scale_OG
        module.weight.data = dequantize(values_OI, scale_OG)
    save_file(tensors, directory / "model.safetensors")
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantization.to_hf()}))
    return nearest
