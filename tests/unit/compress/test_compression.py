"""Where a model comes from, where the smaller one goes, and that it is there whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from llmos import compression
from llmos.control import model_files
from llmos.errors import ConflictError, DataError, ModelError, NotFoundError, UsageError
from llmos.models import weights
from llmos.models.digest import digest
from llmos.models.quantization import LINEAR, OUTPUT, Quantization, Scheme
from llmos.views import ModelView
from tests.unit.compress.conftest import SHAPE
from tests.unit.compress.test_quantize import quiet

INT8 = Quantization({LINEAR: Scheme(8), OUTPUT: Scheme(8)})
INT4 = Quantization({LINEAR: Scheme(4, 32), OUTPUT: Scheme(8)})
UNTIED = dataclasses.replace(SHAPE, tie_embeddings=False)


class Cluster:
    """Answers as the client does. ``imported`` is what it was given to register, as it was then."""

    def __init__(self, path: Path) -> None:
        self.path, self.imported = path, dict[str, object]()

    def model(self, ref: str) -> ModelView:
        return ModelView({"ref": "coder@3", "name": "coder", "version": 3, "path": str(self.path)})

    def import_model(self, name: str, path: Path) -> ModelView:
        self.imported = {"name": name, "config": model_files.inspect(path), "quantization": Quantization.load(path)}
        return ModelView({"ref": f"{name}@1"})


def nobody() -> Cluster:
    raise AssertionError("no cluster is needed")


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_becomes_a_smaller_one(source: Path, tmp_path: Path):
    found = compression.compress(str(source), 4, nobody, quiet, group=32, out=tmp_path / "made" / "small")
    small = tmp_path / "made" / "small"
    assert leftovers(small.parent) == ["small"] and model_files.inspect(small) == UNTIED
    assert Quantization.load(small) == INT4
    kept = {"LICENSE", "tokenizer.json", "tokenizer_config.json"}
    assert set(leftovers(small)) == kept | {"README.md", "config.json", "lineage.json", "model.safetensors"}
    assert all((small / name).read_bytes() == (source / name).read_bytes() for name in kept)
    sizes = [(path / "model.safetensors").stat().st_size for path in (source, small)]
    assert [found["original_bytes"], found["size_bytes"]] == sizes and sizes[1] < 0.65 * sizes[0]
    assert found["path"] == str(small) and found["compressed_from"] == str(source)


def test_it_says_where_it_comes_from(source: Path, tmp_path: Path):
    found = compression.compress(str(source), 8, nobody, quiet, out=tmp_path / "small")
    lineage = json.loads((tmp_path / "small" / "lineage.json").read_text())
    assert lineage["original"] == {"job": "coder-1"}
    assert lineage["compressed_from_digest"] == digest(source) and lineage["bits"] == 8
    assert {name: value for name, value in found.items() if name != "path"}.items() <= lineage.items()
    head, _, text = (tmp_path / "small" / "README.md").read_text()[4:].partition("---\n")
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    assert yaml.safe_load(head)["tags"] == ["code", "compressed-tensors", "int8"]
    assert f"{found['relative_error']:.4f} of the weights" in text and digest(source) in text
    assert "| weights | int8 by channel, rounded to nearest; embeddings, norms as they were |" in text
    assert "## The original's card\n\n# coder@1\n\nLearnt from code." in text


def test_the_output_matrix_may_stay_as_it_is(source: Path, tmp_path: Path):
    found = compression.compress(str(source), 4, nobody, quiet, keep_output=True, out=tmp_path / "small")
    assert Quantization.load(tmp_path / "small") == Quantization({LINEAR: Scheme(4, 32)}, (OUTPUT,))
    assert model_files.inspect(tmp_path / "small") == SHAPE and found["output_bits"] is None
    assert "embeddings, norms and `lm_head` as they were" in (tmp_path / "small" / "README.md").read_text()


def test_a_registered_model_becomes_another(source: Path):
    cluster = Cluster(source)
    found = compression.compress("coder", 4, lambda: cluster, quiet)
    assert found["model"] == "coder-int4@1" and found["compressed_from"] == "coder@3"
    assert cluster.imported == {"name": "coder-int4", "config": UNTIED, "quantization": INT4}
    assert compression.compress("coder", 8, lambda: cluster, quiet, name="small")["model"] == "small@1"
    assert cluster.imported["quantization"] == INT8


def test_a_registered_model_may_go_to_a_directory_instead(source: Path, tmp_path: Path):
    cluster = Cluster(source)
    compression.compress("coder", 8, lambda: cluster, quiet, out=tmp_path / "small")
    assert not cluster.imported and Quantization.load(tmp_path / "small") == INT8


def test_what_cannot_be_asked(source: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="`--out` and `--name`: expected one of them"):
        compression.compress(str(source), 8, nobody, quiet, out=tmp_path / "a", name="b")
    with pytest.raises(UsageError, match="the model is a directory: expected `--out DIR`"):
        compression.compress(str(source), 8, nobody, quiet)
    with pytest.raises(UsageError, match="'No Name' is not a name"):
        compression.compress(str(source), 8, nobody, quiet, name="No Name")
    with pytest.raises(NotFoundError, match="no directory `no/where`"):
        compression.compress("no/where", 8, nobody, quiet, out=tmp_path / "a")
    with pytest.raises(NotFoundError, match=r"coder@3 lies in /no/where on the head node"):
        compression.compress("coder", 8, lambda: Cluster(Path("/no/where")), quiet)
    with pytest.raises(ConflictError, match="exists: expected a path where nothing is"):
        compression.compress(str(source), 8, nobody, quiet, out=source)
    assert leftovers(tmp_path) == ["coder"]


def test_a_quantized_model_is_not_quantized_again(source: Path, tmp_path: Path):
    compression.compress(str(source), 8, nobody, quiet, out=tmp_path / "small")
    with pytest.raises(ModelError, match="is quantized already \\(int8 by channel\\)"):
        compression.compress(str(tmp_path / "small"), 4, nobody, quiet, out=tmp_path / "smaller")
    assert leftovers(tmp_path) == ["coder", "small"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
)
def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def full(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(DataError, match=r"cannot write `.*small`: .*No space left on device"):
        compression.compress(str(source), 8, nobody, quiet, out=tmp_path / "small")
    assert leftovers(tmp_path) == ["coder"]


def test_an_interruption_leaves_nothing(source: Path, tmp_path: Path):
    def interrupted(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compression.compress(str(source), 8, nobody, interrupted, out=tmp_path / "small")
    assert leftovers(tmp_path) == ["coder"]


def test_a_truncated_result_is_not_taken_in(source: Path, tmp_path: Path):
    small = tmp_path / "small"
    compression.compress(str(source), 4, nobody, quiet, out=small)
    whole = (small / "model.safetensors").read_bytes()
    (small / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="truncated or corrupt"):
        model_files.inspect(small)
    (small / "model.safetensors").write_bytes(whole)
    tensors = load_file(small / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_shape"][1] += 64
    weights.save_file(tensors, small / "model.safetensors")
    with pytest.raises(ModelError, match=r"up_proj\.weight_packed has shape \[160, 8\], which does not hold 160 × 128"):
        model_files.inspect(small)
    (small / "model.safetensors").write_bytes(whole)
    config = json.loads((small / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["lm_head"]
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lm_head.weight_packed is there, but by config.json lm_head is not quantized"):
        model_files.inspect(small)
