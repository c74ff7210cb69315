"""transformers reads what is written, where compressed-tensors is installed: a reading of the layout not ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmos.compress.quantize import quantize_weights
from llmos.models import Transformer, weights
from llmos.models.packed_layout import dequantize, unpack
from llmos.models.quantization import Quantization
from tests.unit.compress.conftest import SHAPE
from tests.unit.compress.test_quantize import quiet

QWEN2 = dataclasses.replace(SHAPE, architecture="qwen2", attention_bias=True, tie_embeddings=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("shape", [SHAPE, QWEN2], ids=["llama", "qwen2"])
@pytest.mark.parametrize("quantization", [Quantization(8), Quantization(4, 32)], ids=str)
def test_its_logits_are_those_of_the_rounded_weights(tmp_path: Path, shape, quantization):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: pip install it beside this")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = Transformer(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    weights.save_model(model, tmp_path / "original")
    quantize_weights(tmp_path / "original", tmp_path / "small", quantization, quiet)
    tokens_BT = torch.randint(shape.vocab_size, (2, 40))
    with torch.no_grad():
        before_BTV = model(tokens_BT)
        _round(model, tmp_path / "small", quantization)
        expected_BTV = model(tokens_BT)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
        found_BTV = theirs(tokens_BT).logits
    assert (found_BTV - expected_BTV).abs().max() < 1e-4
    assert (found_BTV - before_BTV).abs().max() > 1e-2  # the rounding is there to be seen


def _round(model: Transformer, directory: Path, quantization: Quantization) -> None:
    """Give ``model`` the weights that the quantized ones in ``directory`` stand for."""
    tensors = load_file(directory / "model.safetensors")
    for name, module in model.named_modules():
        if (packed_OW := tensors.get(f"{name}.weight_packed")) is not None:
            values_OI = unpack(packed_OW, quantization.bits, module.weight.shape[1])
            module.weight.copy_(dequantize(values_OI, tensors[f"{name}.weight_scale"]))
