"""The tensors that files are to hold are those of the model."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.models.headers import Form, forms
from llmos.models.quantization import LINEAR, OUTPUT, Quantization, Scheme
from tests.unit.models.small import make


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "head_dim": 24}], ids=str)
def test_plain_weights_are_the_models_parameters(changes: dict[str, Any]) -> None:
    model = make(**changes)
    assert forms(model.config) == {name: Form(tuple(p.shape)) for name, p in model.named_parameters()}


def test_quantized_linears_have_other_tensors() -> None:
    model = make(tie_embeddings=False)
    found = forms(model.config, Quantization({LINEAR: Scheme(4, 16)}, ("lm_head", "re:.*layers.0")))
    name = "model.layers.1.mlp.down_proj.weight"
    assert name not in found and name.replace(".1.", ".0.") in found and "lm_head.weight" in found
    assert found[f"{name}_packed"] == Form((64, 14), ("I32",)) and found[f"{name}_scale"] == Form((64, 7))


def test_the_output_matrix_may_have_a_scheme_of_its_own() -> None:
    model = make(tie_embeddings=False)
    found = forms(model.config, Quantization({LINEAR: Scheme(4, 16), OUTPUT: Scheme(8)}))
    assert found["lm_head.weight_packed"] == Form((97, 16), ("I32",))
    assert found["lm_head.weight_scale"] == Form((97, 1)) and "lm_head.weight" not in found
    assert found["model.embed_tokens.weight"] == Form((97, 64))
