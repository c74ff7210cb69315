"""Weights on disk: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmos.errors import ModelError
from llmos.models import Transformer, weights
from tests.unit.models.small import make

NAME = "model.layers.1.mlp.up_proj.weight"


def _same(a: Transformer, b: Transformer) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return a.config == b.config and all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def _edit(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    weights.save_model(make(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path: Path, tied: bool) -> None:
    model = make(tie_embeddings=tied)
    weights.save_model(model, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.json", "model.safetensors"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()} == {0o644}
    loaded = weights.load_model(tmp_path / "new")
    assert _same(loaded, model)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    weights.save_model(model, tmp_path)
    single = weights.digest(tmp_path)
    monkeypatch.setattr(weights, "MAX_FILE_BYTES", 100_000)
    weights.save_model(model, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert all((tmp_path / name).stat().st_size < 110_000 for name in names)
    assert _same(weights.load_model(tmp_path), model)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(theirs.model.layers[1].mlp.up_proj.weight, model.state_dict()[NAME])
    (tmp_path / names[1]).unlink()
    with pytest.raises(ModelError, match=f"there is no {tmp_path}/{names[1]}"):
        weights.load_model(tmp_path)
    monkeypatch.undo()
    weights.save_model(model, tmp_path)  # nothing of the earlier files is left to be mistaken for the model
    assert weights.digest(tmp_path) == single


def test_types(saved: Path) -> None:
    assert weights.load_model(saved).output_weight.dtype is torch.float32
    assert weights.load_model(saved, dtype=torch.bfloat16).output_weight.dtype is torch.bfloat16
    weights.save_model(make(), saved, dtype=torch.float16)
    half = weights.load_model(saved)
    assert half.output_weight.dtype is torch.float16
    assert json.loads((saved / "config.json").read_text())["torch_dtype"] == "float16"
    _edit(saved, lambda tensors: tensors.update({NAME: tensors[NAME].float()}))
    assert weights.load_model(saved).output_weight.dtype is torch.float32  # no weight loses precision


def test_loaded_weights_do_not_depend_on_the_file(saved: Path) -> None:
    model = weights.load_model(saved)
    with (saved / "model.safetensors").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 4096)
    assert _same(model, make())


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.999])
def test_a_truncated_file(saved: Path, kept: float) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(ModelError, match=rf"{path} \(.* bytes\) is truncated or corrupt.*expected a whole safetensors"):
        weights.load_model(saved)


def test_a_corrupt_header(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    with pytest.raises(ModelError, match="is truncated or corrupt") as caught:
        weights.load_model(saved)
    assert caught.value.hint == "Copy or export the model again."


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(NAME), f"lacks weights: {NAME}; expected what config.json says"),
        (lambda t: [t.pop(name) for name in list(t)[:7]], "lacks weights: .* and 4 more"),
        (lambda t: t.update(extra=torch.zeros(3)), "has unexpected weights: extra"),
        (
            lambda t: t.update({NAME: torch.zeros(64, 64)}),
            rf"{NAME} has shape \[64, 64\]; config.json calls for \[112, 64\]",
        ),
        (lambda t: t.update({NAME: t[NAME].to(torch.int8)}), f"{NAME} has type I8; expected F32, BF16, F16"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(97, 64)}), "has unexpected weights: lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit(saved: Path, edit: Callable[[dict[str, Tensor]], object], message: str) -> None:
    _edit(saved, edit)
    with pytest.raises(ModelError, match=message):
        weights.load_model(saved)


def test_what_other_exports_add_is_accepted(saved: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    _edit(saved, add)
    assert _same(weights.load_model(saved), make())


def test_pickled_weights_are_refused(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match="there is no .*model.safetensors") as caught:
        weights.load_model(saved)
    assert "Convert its pickled files" in caught.value.hint


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not an index of weights"),
        ("[]", "is not an index of weights"),
        (
            '{"weight_map": {"a": "../../etc/model.safetensors"}}',
            "names '../../etc/model.safetensors': expected files beside",
        ),
        ('{"weight_map": {}}', "lacks weights"),
    ],
)
def test_a_broken_index(saved: Path, index: str, message: str) -> None:
    (saved / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=message):
        weights.load_model(saved)


def test_a_failed_save_changes_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights.digest(saved)
    monkeypatch.setattr(weights, "save_file", _fails)
    with pytest.raises(OSError, match="no room"):
        weights.save_model(make(seed=1), saved)
    assert weights.digest(saved) == before
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def _fails(*_: object, **__: object) -> None:
    raise OSError("no room")


def test_the_digest_is_that_of_the_model(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    digest = weights.digest(saved)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    weights.save_model(make(), elsewhere)
    assert weights.digest(elsewhere) == digest and len(digest) == 64
    (saved / "README.md").write_text("a card")
    (saved / "lineage.json").write_text("{}")
    assert weights.digest(saved) == digest  # about the model, not the model
    seen = {digest}
    for change in (
        lambda: (saved / "tokenizer.json").write_text("{}"),
        lambda: (saved / "chat_template.jinja").write_text("{{ messages }}"),
        lambda: (saved / "tokenizer.json").rename(saved / "tokenizer_config.json"),
        lambda: _edit(saved, lambda tensors: tensors[NAME].add_(1e-3)),
    ):
        change()
        seen.add(weights.digest(saved))
    assert len(seen) == 5
    with pytest.raises(ModelError, match="there is no model in"):
        weights.digest(tmp_path_factory.mktemp("empty"))
