"""The shape of a model: its round trip through config.json, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import ModelError
from llmos.models.config import ModelConfig, RopeScaling
from llmos.spec import PRESETS
from tests.unit.models.small import SCALING, SMALL

HF = SMALL.to_hf()

configs = st.builds(
    lambda groups, kv_heads, half, **fields: ModelConfig(
        num_kv_heads=kv_heads, num_heads=groups * kv_heads, head_dim=2 * half, **fields
    ),
    groups=st.integers(1, 8),
    kv_heads=st.integers(1, 16),
    half=st.integers(1, 128),
    vocab_size=st.integers(10, 10**6),
    hidden_size=st.integers(1, 10**5),
    intermediate_size=st.integers(1, 10**5),
    num_layers=st.integers(1, 200),
    max_position=st.integers(1, 10**6),
    rope_theta=st.floats(1, 1e8),
    norm_eps=st.floats(1e-12, 1e-2),
    tie_embeddings=st.booleans(),
    bos_token_id=st.none() | st.integers(0, 9),
    eos_token_id=st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1).map(tuple),
    rope_scaling=st.none()
    | st.builds(RopeScaling, st.floats(1, 64), st.floats(0.1, 1), st.floats(2, 8), st.integers(1, 10**5)),
)


@given(configs)
def test_config_json_and_back(config: ModelConfig) -> None:
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_presets_are_shapes() -> None:
    config = ModelConfig.from_preset(PRESETS["1b"], 128256, bos=128000, eos=(128001, 128008))
    assert config.num_parameters == 1_235_814_400  # what huggingface.co counts in meta-llama/Llama-3.2-1B
    assert config.eos_token_ids == {128001, 128008}
    assert dataclasses.replace(config, eos_token_id=5).eos_token_ids == {5}
    assert dataclasses.replace(config, eos_token_id=None).eos_token_ids == frozenset()


def test_defaults_are_those_of_hugging_face() -> None:
    least = {"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 8}
    config = ModelConfig.from_hf({**least, "num_hidden_layers": 1, "num_attention_heads": 4})
    assert (config.num_kv_heads, config.head_dim, config.max_position) == (4, 16, 2048)
    assert (config.rope_theta, config.norm_eps, config.tie_embeddings) == (10000.0, 1e-6, False)


def test_rope_in_the_form_of_transformers_4_and_5() -> None:
    old = {
        **HF,
        "rope_theta": 5e5,
        "rope_scaling": dataclasses.replace(SMALL, rope_scaling=SCALING).to_hf()["rope_scaling"],
    }
    new = {k: v for k, v in HF.items() if not k.startswith("rope")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": 5e5}
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new)
    assert ModelConfig.from_hf(new).rope_scaling == SCALING and ModelConfig.from_hf(new).rope_theta == 5e5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            r'`architectures` is \["MixtralForCausalLM"\]: expected \["LlamaFor',
        ),
        ({"architectures": None, "model_type": "gpt2"}, '`model_type` is "gpt2": expected "llama"'),
        ({"architectures": [], "model_type": None}, "`architectures` is nothing"),
        ({"attention_bias": True}, "`attention_bias` is true: expected false"),
        ({"mlp_bias": True}, "`mlp_bias` is true: expected false"),
        ({"hidden_act": "gelu"}, '`hidden_act` is "gelu": expected "silu"'),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` is .*: expected none: weights in plain floats"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5: expected 1"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "`rope_scaling.rope_type` is linear: expected llama3"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "`rope_scaling.factor` is None: expected a positive number"),
        ({"rope_scaling": 3}, "`rope_scaling` is 3: expected an object"),
        ({"num_key_value_heads": 3}, r"`num_kv_heads` is 3: expected a divisor of num_heads \(8\)"),
        ({"head_dim": 15}, "`head_dim` is 15: expected an even number"),
        ({"hidden_size": None}, "`hidden_size` is None: expected a positive whole number"),
        ({"hidden_size": "64"}, "`hidden_size` is 64: expected a positive whole number"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0: expected a positive whole number"),
        ({"num_attention_heads": True}, "`num_attention_heads` is True"),
        ({"rms_norm_eps": -1.0}, "`norm_eps` is -1.0: expected a positive number"),
        ({"tie_word_embeddings": "yes"}, "`tie_embeddings` is yes: expected true or false"),
        ({"eos_token_id": [2, 97]}, r"`eos_token_id` is 97: expected a token below vocab_size \(97\)"),
        ({"bos_token_id": -1}, "`bos_token_id` is -1"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_hf({**HF, **changes})


def test_scaling_must_leave_a_band_between_its_factors() -> None:
    with pytest.raises(ModelError, match="`rope_scaling.high_freq_factor` is 1.0 and 4.0: expected more than"):
        RopeScaling(8.0, 4.0, 1.0, 8192)


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"there is no {tmp_path}/config.json; expected a model"):
        ModelConfig.load(tmp_path)
    for content, message in (("{", "cannot be read"), ("[]", "not an object"), (b"\xff\xfe", "cannot be read")):
        (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ModelError, match=message):
            ModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**HF, "head_dim": 7}))
    with pytest.raises(ModelError, match=f"{tmp_path}/config.json: `head_dim` is 7") as caught:
        ModelConfig.load(str(tmp_path))
    assert caught.value.param == "head_dim"


def test_the_shape_alone_needs_no_torch() -> None:
    code = "import sys; from llmos.models import ModelConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
