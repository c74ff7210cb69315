"""The shape of a model: its round trip through config.json, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import ModelError, UnsupportedModelError
from llmos.models.config import ModelConfig
from llmos.models.families import FAMILIES
from llmos.models.rope_config import LinearScaling, Llama3Scaling, YarnScaling
from llmos.spec import PRESETS
from tests.unit.models.small import SCALING, SMALL

HF = SMALL.to_hf()

QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 8}


def _config(groups: int, kv_heads: int, half: int, window: int | None, **fields: Any) -> ModelConfig:
    family = FAMILIES[fields["architecture"]]
    has = {"attention_bias": family.attention_bias, "qk_norm": family.qk_norm}
    has["sliding_window"] = window if family.window else None
    return ModelConfig(num_kv_heads=kv_heads, num_heads=groups * kv_heads, head_dim=2 * half, **has, **fields)


def _rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, "factor": 2.0, **fields}}


configs = st.builds(
    _config,
    architecture=st.sampled_from(sorted(FAMILIES)),
    window=st.none() | st.integers(1, 10**5),
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
    | st.builds(LinearScaling, st.floats(1, 64))
    | st.builds(Llama3Scaling, st.floats(1, 64), st.floats(0.1, 1), st.floats(2, 8), st.integers(1, 10**5))
    | st.builds(
        YarnScaling,
        *(st.floats(1, 64), st.integers(1, 10**5), st.floats(4, 64), st.floats(0.1, 4)),
        *(st.none() | st.floats(0, 2) for _ in range(3)),
        st.booleans(),
    ),
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
        ({"rope_scaling": {"rope_type": "llama3"}}, "`rope_scaling.factor` is None: expected a positive number"),
        ({"rope_scaling": 3}, "`rope_scaling` is 3: expected an object"),
        (_rope("yarn", beta_fast=0.5), "`rope_scaling.beta_fast` is 0.5 and 1.0: expected at least beta_slow"),
        (_rope("yarn", mscale="x"), "`rope_scaling.mscale` is x: expected a number that is not negative"),
        (_rope("yarn", truncate=1), "`rope_scaling.truncate` is 1: expected true or false"),
        (_rope("linear", factor=0), "`rope_scaling.factor` is 0: expected a positive number"),
        ({**QWEN, "max_window_layers": None}, "`max_window_layers` is None: expected a whole number"),
        ({**QWEN, "max_window_layers": 0, "sliding_window": 0}, "`sliding_window` is 0: expected a positive whole"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            r'`architectures` is \["MixtralForCausalLM"\]: expected \["LlamaForCausalLM"\] or .*Qwen3ForCausalLM"\]',
        ),
        ({"architectures": None, "model_type": "gpt2"}, '`model_type` is "gpt2": expected "llama" or "mistral" or'),
        ({"model_type": "qwen2"}, '`model_type` is "qwen2": expected "llama", as `architectures` says'),
        ({"architectures": [], "model_type": None}, "`architectures` is nothing"),
        ({"attention_bias": True}, "`attention_bias` is true: expected false"),
        ({"mlp_bias": True}, "`mlp_bias` is true: expected false"),
        ({"hidden_act": "gelu"}, '`hidden_act` is "gelu": expected "silu"'),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5: expected 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "`partial_rotary_factor` is 0.5: expected 1"),
        (_rope("dynamic"), "`rope_scaling.rope_type` is dynamic: expected linear, llama3, yarn or default"),
        ({"rope_parameters": {"full_attention": {}}}, "an object for full_attention: expected one for all layers"),
        ({**QWEN, "max_window_layers": 2}, "`max_window_layers` is 2: expected one kind of attention in all layers"),
        (QWEN | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "`layer_types` is"),
        (QWEN | {"layer_types": ["chunked_attention"] * 3}, "`layer_types` is"),
    ],
)
def test_what_is_computed_elsewhere_is_told_from_what_is_broken(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        ModelConfig.from_hf({**HF, **changes})
    assert caught.value.hint == "llmos computes dense decoders of the families Llama, Mistral, Qwen2 and Qwen3."


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({**QWEN, "use_sliding_window": False}, None),
        ({**QWEN, "sliding_window": None}, None),
        (QWEN, None),  # from layer 28 on, which is not there
        ({**QWEN, "max_window_layers": 3}, None),
        ({**QWEN, "max_window_layers": 0}, 8),
        ({**QWEN, "layer_types": ["sliding_attention"] * 3}, 8),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, 4096),
        ({"model_type": "mistral", "architectures": None, "sliding_window": None}, None),
        ({"sliding_window": 8}, None),  # LlamaForCausalLM does not look at it
    ],
)
def test_windows_as_transformers_reads_them(changes: dict[str, Any], window: int | None) -> None:
    assert ModelConfig.from_hf({**HF, **changes}).sliding_window == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, "`architecture` is gpt2: expected llama, mistral, qwen2, qwen3"),
        ({"architecture": "qwen2"}, "`attention_bias` is False: expected True, as qwen2 has it"),
        ({"qk_norm": True}, "`qk_norm` is True: expected False, as llama has it"),
        ({"sliding_window": 8}, "`sliding_window` is 8: expected none: llama has no window"),
    ],
)
def test_a_family_has_what_it_has(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_yarn_grows_with_its_factor_unless_told_otherwise() -> None:
    """The numbers of the paper, section 3.4, and of DeepSeek-V2's config.json, whose mscales are equal."""
    assert YarnScaling(40.0, 4096).magnitude == pytest.approx(0.1 * math.log(40) + 1)
    assert YarnScaling(40.0, 4096, mscale=0.707, mscale_all_dim=0.707).magnitude == 1.0
    assert YarnScaling(40.0, 4096, mscale=1.0).magnitude == YarnScaling(40.0, 4096).magnitude
    assert YarnScaling(40.0, 4096, attention_factor=1.5, mscale=1.0, mscale_all_dim=0.5).magnitude == 1.5
    assert YarnScaling(0.5, 4096).magnitude == 1.0


def test_the_original_context_is_the_whole_one_unless_named() -> None:
    for where in ({}, {"original_max_position_embeddings": 64}):
        config = ModelConfig.from_hf({**HF, **_rope("yarn"), **where})
        assert config.rope_scaling == YarnScaling(2.0, where.get("original_max_position_embeddings", 256))


def test_scaling_must_leave_a_band_between_its_factors() -> None:
    with pytest.raises(ModelError, match="`rope_scaling.high_freq_factor` is 1.0 and 4.0: expected more than"):
        Llama3Scaling(8.0, 4.0, 1.0, 8192)


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
