"""What `quantization_config` may say: the layouts that are read, and a reason for each that is not."""

from __future__ import annotations

import copy

import pytest

from llmos.errors import ModelError
from llmos.models.quantization import LINEAR, OUTPUT, PLAIN, Quantization, Scheme

INT4 = Quantization({LINEAR: Scheme(4, 128)}, (OUTPUT,)).to_hf()


def changed(*path: str, to: object) -> dict:
    """``INT4`` with the field at ``path`` changed."""
    found = copy.deepcopy(INT4)
    place = found
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return found


@pytest.mark.parametrize(
    ("bits", "group", "packed"), [(8, 0, True), (8, 0, False), (8, 64, True), (4, 0, True), (4, 32, True)]
)
def test_what_is_written_is_read(bits, group, packed):
    quantization = Quantization({LINEAR: Scheme(bits, group, packed)}, ("lm_head", "re:.*down_proj"))
    assert Quantization.from_hf(quantization.to_hf()) == quantization


def test_each_scheme_has_its_group():
    both = Quantization({LINEAR: Scheme(4, 64), OUTPUT: Scheme(8)})
    groups = both.to_hf()["config_groups"]
    assert [group["targets"] for group in groups.values()] == [["Linear"], ["lm_head"]]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [4, 8]
    assert both.to_hf()["format"] == "pack-quantized" and Quantization.from_hf(both.to_hf()) == both
    assert str(both) == "int4 in groups of 64, lm_head int8 by channel"
    alike = Quantization({LINEAR: Scheme(8), OUTPUT: Scheme(8)})
    assert [group["targets"] for group in alike.to_hf()["config_groups"].values()] == [["Linear", "lm_head"]]
    assert Quantization.from_hf(alike.to_hf()) == alike and str(alike) == "int8 by channel"


def test_formats_may_differ_between_groups():
    mixed = Quantization({LINEAR: Scheme(4, 64), OUTPUT: Scheme(8, packed=False)})
    assert mixed.to_hf()["format"] == "mixed-precision" and Quantization.from_hf(mixed.to_hf()) == mixed


def test_the_narrowest_target_counts():
    """As compressed-tensors has it: names, then patterns by the alphabet, then classes."""
    down = "model.layers.3.mlp.down_proj"
    schemes = {LINEAR: Scheme(4, 128), "re:.*proj": Scheme(4, 64), "re:.*down": Scheme(4, 32), down: Scheme(8)}
    found = Quantization(schemes, ("re:.*k_proj",))
    assert found.scheme("lm_head") == Scheme(4, 128)
    assert found.scheme("model.layers.3.mlp.up_proj") == Scheme(4, 64)
    assert found.scheme("model.layers.2.mlp.down_proj") == Scheme(4, 32)
    assert found.scheme(down) == Scheme(8)
    assert found.scheme("model.layers.3.self_attn.k_proj") is None
    assert Quantization({"re:.*proj": Scheme(8)}).scheme("lm_head") is None and found.widest_group == 128


def test_no_configuration_is_no_quantization():
    assert Quantization.from_hf(None) is None


def test_what_others_leave_out_has_its_meaning():
    found = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "group_size": -1}}},
    }
    assert Quantization.from_hf(found) == Quantization({LINEAR: Scheme(8)})


def test_inputs_rounded_token_by_token_may_stay_as_they_are():
    plain = Quantization({LINEAR: Scheme(8, packed=False)})
    found = plain.to_hf()
    found["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "strategy": "token", "dynamic": True}
    assert Quantization.from_hf(found) == plain


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (changed("quant_method", to="gptq"), "quant_method"),
        (changed("config_groups", to={}), "config_groups"),
        (changed("config_groups", to=[]), "config_groups"),
        (changed("config_groups", "group_0", "targets", to="Linear"), "targets"),
        (changed("config_groups", "group_0", "targets", to=[]), "targets"),
        (changed("config_groups", "group_0", "targets", to=["Linear", "Embedding"]), "targets"),
        (changed("config_groups", "group_0", "targets", to=["re:("]), "targets"),
        (changed("config_groups", "group_1", to={"targets": ["lm_head"], "weights": {"num_bits": 2}}), "num_bits"),
        (changed("config_groups", "group_0", "format", to="marlin-24"), "format"),
        (changed("config_groups", "group_0", "format", to=PLAIN), "num_bits"),
        (changed("config_groups", "group_0", "input_activations", to={"dynamic": False}), "input_activations.dynamic"),
        (changed("config_groups", "group_0", "output_activations", to={"num_bits": 8}), "output_activations"),
        (changed("kv_cache_scheme", to={"num_bits": 8}), "kv_cache_scheme"),
        (changed("config_groups", "group_0", "weights", "num_bits", to=3), "num_bits"),
        (changed("config_groups", "group_0", "weights", "type", to="float"), "type"),
        (changed("config_groups", "group_0", "weights", "symmetric", to=False), "symmetric"),
        (changed("config_groups", "group_0", "weights", "dynamic", to=True), "dynamic"),
        (changed("config_groups", "group_0", "weights", "actorder", to="group"), "actorder"),
        (changed("config_groups", "group_0", "weights", "strategy", to="block"), "strategy"),
        (changed("config_groups", "group_0", "weights", "strategy", to="channel"), "group_size"),
        (changed("config_groups", "group_0", "weights", "group_size", to=7), "group_size"),
        (changed("config_groups", "group_0", "weights", "group_size", to=True), "group_size"),
        (changed("ignore", to="lm_head"), "ignore"),
        (changed("ignore", to=["re:("]), "ignore"),
        ("int4", "quantization_config"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(found, name):
    with pytest.raises(ModelError) as error:
        Quantization.from_hf(found)
    assert f"`{name}` is " in error.value.message and error.value.param == "quantization_config"


def test_what_is_ignored_is_not_quantized():
    quantization = Quantization({LINEAR: Scheme(4, 128)}, ("lm_head", "re:.*layers.0.mlp"))
    assert quantization.scheme("lm_head") is None
    assert quantization.scheme("model.layers.0.mlp.down_proj") is None
    assert quantization.scheme("model.layers.10.mlp.down_proj") == Scheme(4, 128)


def test_groups_that_do_not_divide_are_refused_with_the_numbers():
    assert Scheme(4, 64).groups(576) == 9 and Scheme(8).groups(577) == 1
    with pytest.raises(ModelError, match="groups of 128 columns do not divide rows of 576"):
        Scheme(4, 128).groups(576)
