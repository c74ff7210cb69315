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
from llmos.models.quantization import Quantization


def write_quantized(model: Transformer, directory: Path, quantization: Quantization) -> Transformer:
    """Write it to ``directory``. Returns the model whose weights are the quantized ones."""
    weights.save_model(model, directory)
    tensors, nearest = load_file(directory / "model.safetensors"), copy.deepcopy(model)
    for name, module in nearest.named_modules():
        if not isinstance(module, nn.Linear) or not quantization.covers(name):
            continue
        weight_OI = tensors.pop(f"{name}.weight")
        weight_OGC = weight_OI.unflatten(1, (quantization.groups(weight_OI.shape[1]), -1))
        largest = 2 ** (quantization.bits - 1) - 1
        scale_OG = (weight_OGC.abs().amax(-1) / largest).bfloat16()
        values_OGC = (weight_OGC / scale_OG[..., None].float()).round().clamp(-largest, largest)
        values_OI = values_OGC.flatten(1).to(torch.int8)
        if quantization.packed:
            tensors[f"{name}.weight_packed"] = pack(values_OI, quantization.bits)
            tensors[f"{name}.weight_shape"] = torch.tensor(weight_OI.shape)
        else:
            tensors[f"{name}.weight"] = values_OI
        tensors[f"{name}.weight_scale"] = scale_OG
        module.weight.data = dequantize(values_OI, scale_OG)
    save_file(tensors, directory / "model.safetensors")
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantization.to_hf()}))
    return nearest
