"""transformers reads what is written, where compressed-tensors is installed: a reading of the layout not ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from llmos.compress.quantize import quantization_for, quantize_weights
from llmos.models import Transformer, weights
from tests.unit.compress.conftest import SHAPE
from tests.unit.compress.test_quantize import quiet

QWEN2 = dataclasses.replace(SHAPE, architecture="qwen2", attention_bias=True, tie_embeddings=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("shape", [SHAPE, QWEN2], ids=["llama", "qwen2"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("keep_output", [False, True])
def test_its_logits_are_those_of_the_rounded_weights(tmp_path: Path, shape, bits, keep_output):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: pip install it beside this")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = Transformer(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    weights.save_model(model, tmp_path / "original")
    quantization = quantization_for(shape, bits, keep_output=keep_output)
    quantize_weights(tmp_path / "original", tmp_path / "small", quantization, quiet)
    tokens_BT = torch.randint(shape.vocab_size, (2, 40))
    with torch.no_grad():
        before_BTV = model(tokens_BT)
        expected_BTV = weights.load_model(tmp_path / "small", dequantize=True)(tokens_BT)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
        found_BTV = theirs(tokens_BT).logits
    assert (found_BTV - expected_BTV).abs().max() < 1e-4
    assert (found_BTV - before_BTV).abs().max() > 1e-2  # the rounding is there to be seen
