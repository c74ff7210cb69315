"""Encoders in the registry and as services."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmos.control import model_files
from llmos.errors import ModelError, UsageError
from llmos.models.digest import digest
from llmos.models.encoder_config import EncoderConfig
from tests.unit.control.world import World
from tests.unit.models.encoders import write_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    write_encoder(path, pooling="cls")
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    return path


@pytest.fixture
def source(tmp_path: Path, encoder: Path) -> Path:
    return Path(shutil.copytree(encoder, tmp_path / "source"))


def test_import_and_export_keep_how_vectors_are_made(world: World, source: Path, tmp_path: Path) -> None:
    model = world.registry.import_model("m", str(source))
    path, shape = Path(model["path"]), EncoderConfig.load(source)
    assert EncoderConfig.load(path) == shape and (shape.pooling, shape.max_tokens) == ("cls", 16)
    assert model["digest"] == digest(source) and model["parameters"] == shape.num_parameters
    assert "pipeline_tag: feature-extraction" in (path / "README.md").read_text()
    assert model["size_bytes"] > (path / "model.safetensors").stat().st_size
    world.registry.export("m@1", str(tmp_path / "out"))
    assert EncoderConfig.load(tmp_path / "out") == shape
    pooling = source / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode": "mean"}))
    assert world.registry.import_model("m", str(source))["digest"] != model["digest"]


def outside(directory: Path) -> None:
    shutil.move(directory / "1_Pooling", directory.parent / "elsewhere")
    (directory / "1_Pooling").symlink_to(directory.parent / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (outside, "1_Pooling/config.json is a link out of its directory"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 9), "truncated or corrupt"),
        (lambda d: (d / "tokenizer.json").unlink(), r"there is no .*tokenizer\.json"),
    ],
)
def test_what_is_no_whole_encoder_is_refused(world: World, source: Path, harm: object, message: str) -> None:
    assert callable(harm)
    harm(source)
    with pytest.raises(ModelError, match=message):
        world.registry.import_model("m", str(source))
    assert world.registry.all() == []


def test_more_tokens_than_the_model_has_are_refused(world: World, source: Path) -> None:
    found = json.loads((source / "tokenizer.json").read_text())
    found["model"]["vocab"]["more"] = 21
    (source / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(ModelError, match="the tokenizer has 22 tokens, the model 21"):
        world.registry.import_model("m", str(source))


def test_a_directory_that_becomes_a_link_is_not_followed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = model_files.files

    def swap(directory: Path) -> list[Path]:
        found = honest(directory)
        outside(directory)
        return found

    monkeypatch.setattr(model_files, "files", swap)
    (tmp_path / "target").mkdir()
    with pytest.raises(ModelError, match="link out of its directory"):
        model_files.copy(source, tmp_path / "target")


def test_only_what_generates_is_evaluated(source: Path) -> None:
    with pytest.raises(ModelError, match=r'`architectures` is \["BertModel"\]'):
        model_files.inspect_decoder(source)


@pytest.mark.parametrize(
    ("field", "value"),
    [("engine", "vllm"), ("mesh", {"tp": 2}), ("speculative", 2), ("cache_memory", "1MiB")],
)
def test_a_service_asks_for_nothing_that_only_generating_models_have(
    world: World, source: Path, field: str, value: object
) -> None:
    world.registry.import_model("m", str(source))
    spec = {"kind": "Service", "name": "s", "model": "m"}
    with pytest.raises(UsageError, match=f"`{field}` is not for `m`, an encoder") as refused:
        world.control.put_service("s", spec | {field: value})
    assert refused.value.param == field
    assert world.control.put_service("s", spec)["model"] == "m@1"
