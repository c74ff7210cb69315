from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmos.control import model_files
from llmos.control.registry import Registry
from llmos.core.types import AttemptPhase
from llmos.errors import ConflictError, DataError, ModelError, NotFoundError, UsageError
from llmos.models import ModelConfig
from llmos.models.digest import digest
from llmos.sim.cluster import Outcome
from tests.unit.control.world import SHAPE, Row, World, tensors, write_model


@pytest.fixture
def source(tmp_path: Path, tokenizer: Path) -> Path:
    return write_model(tmp_path / "source", tokenizer)


def entries(world: World, name: str = "m") -> list[str]:
    home = world.layout.models / name
    return sorted(path.name for path in home.iterdir()) if home.exists() else []


def test_import_copies_what_belongs_to_a_model(world: World, source: Path) -> None:
    (source / "pickle.bin").write_bytes(b"no")
    (source / "run_me.py").write_text("raise SystemExit")
    (source / "lineage.json").write_text(json.dumps({"metrics": "a stranger's"}))
    model = world.registry.import_model("m", str(source))
    path = Path(model["path"])
    assert model["ref"] == "m@1" and model["digest"] == digest(source) and model["parameters"] == SHAPE.num_parameters
    kept = {"README.md", "config.json", "lineage.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {entry.name for entry in path.iterdir()} == kept
    assert model["size_bytes"] > (path / "model.safetensors").stat().st_size
    assert model["lineage"] == {"imported_from": str(source), "original": {"metrics": "a stranger's"}}
    assert "# m@1" in (path / "README.md").read_text()
    (source / "config.json").write_text("changed later")
    assert ModelConfig.load(path) == SHAPE
    assert world.registry.import_model("other", str(path))["digest"] == model["digest"]


def test_a_trained_model_carries_its_lineage(world: World) -> None:
    ref = world.trained()
    model = world.registry.get(ref)
    card = (Path(model["path"]) / "README.md").read_text()
    assert model["lineage"]["job"] == "coder-1" and "| job | coder-1 |" in card and "| loss | 2.5 |" in card
    assert json.loads((Path(model["path"]) / "lineage.json").read_text()) == model["lineage"]
    assert "job" not in json.loads((world.layout.job("coder-1").export / "lineage.json").read_text())


def test_registering_again_gives_the_same_version(world: World) -> None:
    ref = world.trained()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: world.registry.register("coder-1"), range(8))) == {ref}
    assert entries(world, "coder") == ["1"]


def test_versions_registered_at_once_are_different(world: World, source: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        refs = list(pool.map(lambda _: world.registry.import_model("m", str(source))["ref"], range(8)))
    assert sorted(refs) == sorted(f"m@{i}" for i in range(1, 9)) and entries(world) == sorted("12345678")
    assert world.registry.get("m")["ref"] == "m@8"


def truncate(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lack_a_tensor(directory: Path) -> None:
    shapes = list(tensors().items())[:-1]
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes}, directory / "model.safetensors")


def be_quantized(directory: Path) -> None:
    save_file({"w": np.zeros(4, np.int8)}, directory / "model.safetensors")


def be_of_another_family(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(SHAPE.to_hf() | {"architectures": ["GPT2LMHeadModel"]}))


def link_out(directory: Path) -> None:
    shutil.copy(directory / "tokenizer.json", directory.parent / "elsewhere.json")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to(directory.parent / "elsewhere.json")


def index_outside(directory: Path) -> None:
    index = {"weight_map": {"w": "../../etc/passwd"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, r"model\.safetensors \(.* bytes\) is truncated or corrupt"),
        (lack_a_tensor, "the weights have .* parameters; config.json calls for"),
        (be_quantized, "w has type I8; expected F32, BF16, F16"),
        (be_of_another_family, "GPT2LMHeadModel"),
        (link_out, r"tokenizer\.json is a link out of its directory"),
        (index_outside, "names .*passwd.: expected files beside it"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 9), "truncated or corrupt"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "there is no .*model.safetensors"),
        (lambda d: (d / "tokenizer.json").unlink(), r"there is no .*tokenizer\.json"),
        (lambda d: (d / "config.json").unlink(), r"there is no .*config\.json"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda d: os.mkfifo(d / "lineage.json"), r"lineage\.json is not a file"),
        (lambda d: (d / "lineage.json").write_text("{"), r"lineage\.json is not JSON"),
        (lambda d: (d / "lineage.json").write_text("[]"), r"lineage\.json is not a JSON object"),
        (lambda d: (d / "model.safetensors.index.json").write_text("[]"), "not an index of weights"),
    ],
)
def test_what_is_no_whole_model_is_refused_and_leaves_nothing(
    world: World, source: Path, harm: object, message: str
) -> None:
    assert callable(harm)
    harm(source)
    with pytest.raises(ModelError, match=message) as error:
        world.registry.import_model("m", str(source))
    assert str(source) in str(error.value) and entries(world) == [] and world.registry.all() == []


def test_a_file_that_becomes_a_link_is_not_followed(
    world: World, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = source.parent / "secret"
    secret.write_text("hush")
    honest = model_files.inspect

    def swap(directory: Path) -> ModelConfig:
        config = honest(directory)
        (directory / "config.json").unlink()
        (directory / "config.json").symlink_to(secret)
        return config

    monkeypatch.setattr(model_files, "inspect", swap)
    with pytest.raises(ModelError, match="link out of its directory"):
        world.registry.import_model("m", str(source))
    assert entries(world) == []


@pytest.mark.parametrize("name", ["../up", "A", "", "a/b", "."])
def test_names_stay_inside(world: World, source: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a name"):
        world.registry.import_model(name, str(source))


@pytest.mark.parametrize("point", ["copy", "digest_of", "rename", "commit", "settled"])
def test_a_crash_leaves_all_or_nothing(world: World, source: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    class Crash(BaseException):
        """SIGKILL: nothing is cleaned up after it."""

    def crash(*_args: object, **_keywords: object) -> None:
        raise Crash

    monkeypatch.setattr("llmos.control.registry.shutil.rmtree", lambda *_args: None)
    if point == "copy":
        monkeypatch.setattr(model_files, "copy", crash)
    elif point == "digest_of":
        monkeypatch.setattr("llmos.control.registry.digest_of", crash)
    elif point == "rename":
        monkeypatch.setattr("llmos.control.registry.sync_directory", crash)
    elif point == "commit":
        monkeypatch.setattr(world.store.models, "add", crash)
    else:
        honest = world.store.models.add

        def add_and_crash(row: Row, why: str) -> None:
            honest(row, why)
            raise Crash

        monkeypatch.setattr(world.store.models, "add", add_and_crash)
    with pytest.raises(Crash):
        world.registry.import_model("m", str(source))
    monkeypatch.undo()
    world.open()
    survived = [model["ref"] for model in world.registry.all()]
    assert survived == (["m@1"] if point == "settled" else []) and entries(world) == (["1"] if survived else [])
    if survived:
        assert digest(Path(world.registry.get("m")["path"])) == world.registry.get("m")["digest"]
    assert world.registry.import_model("m", str(source))["version"] == len(survived) + 1


def test_a_crash_in_a_removal_is_put_right(world: World, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.registry.import_model("m", str(source))
    monkeypatch.setattr(world.registry, "_delete", lambda _path: None)  # dies between the commit and the files
    world.registry.remove("m@1")
    assert entries(world) == ["1"]
    world.open()
    assert entries(world) == [] and world.registry.import_model("m", str(source))["ref"] == "m@2"


def test_versions_that_the_store_does_not_know_are_left_alone(world: World, source: Path) -> None:
    world.registry.import_model("m", str(source))
    world.store.close()
    for path in world.layout.root.glob("control.db*"):
        path.unlink()  # "move it away to start with an empty one"
    world.open()
    assert world.registry.import_model("m", str(source))["ref"] == "m@2" and entries(world) == ["1", "2"]


def test_a_model_in_use_stays(world: World) -> None:
    ref = world.trained()
    world.control.put_service("s", {"kind": "Service", "name": "s", "model": "coder"})
    with pytest.raises(ConflictError, match=f"model {ref} is in use by service s"):
        world.registry.remove(ref)
    world.control.delete_service("s")
    job = world.control.submit_job(world.spec("tuned", model={"ref": "coder"}))
    assert job["spec"]["model"] == {"ref": ref}
    with pytest.raises(ConflictError, match=f"in use by job {job['id']}"):
        world.registry.remove(ref)
    world.control.cancel_job(job["id"])
    world.run(5)
    world.registry.remove(ref)
    assert entries(world, "coder") == []
    with pytest.raises(NotFoundError, match=f"no model `{ref}`"):
        world.registry.get(ref)


def test_only_versions_are_removed(world: World, source: Path) -> None:
    world.registry.import_model("m", str(source))
    for ref, error in (("m", UsageError), ("m@2", NotFoundError), ("m@01", NotFoundError), ("m@../1", NotFoundError)):
        with pytest.raises(error):
            world.registry.remove(ref)
    assert entries(world) == ["1"]


def test_export_makes_a_new_directory(world: World, source: Path, tmp_path: Path) -> None:
    model = world.registry.import_model("m", str(source))
    shown = world.registry.export("m", str(tmp_path / "out"))
    assert (shown["ref"], shown["path"]) == ("m@1", str(tmp_path / "out"))
    assert digest(tmp_path / "out") == model["digest"]
    for path, error in (("out", ConflictError), ("no/such/out", NotFoundError)):
        with pytest.raises(error):
            world.registry.export("m", str(tmp_path / path))
    with pytest.raises(UsageError, match="not an absolute path"):
        world.registry.export("m", "relative")
    with pytest.raises(DataError, match="cannot write `/proc/out`"):
        world.registry.export("m", "/proc/out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_job_without_a_model_has_none(world: World) -> None:
    world.outcomes["coder-1"] = [Outcome(1.0, AttemptPhase.FAILED)]
    world.control.submit_job(world.spec(retries=0))
    world.run(5)
    with pytest.raises(ModelError, match="job coder-1 left no model"):
        world.registry.register("coder-1")


def test_the_newest_is_by_number(world: World, source: Path) -> None:
    for _ in range(11):
        world.registry.import_model("m", str(source))
    assert world.registry.get("m")["ref"] == "m@11"
    assert [model["version"] for model in Registry(world.layout, world.store, world.clock).all()] == [*range(1, 12)]


def test_a_file_in_the_place_of_a_model(world: World, source: Path) -> None:
    with pytest.raises(ModelError, match="is not a directory"):
        world.registry.import_model("m", str(source / "config.json"))


def test_weights_may_be_in_several_files_and_on_another_file_system(
    world: World, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "model.safetensors").unlink()
    names = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors())}
    for file in set(names.values()):
        part = {name: np.zeros(shape, np.float32) for name, shape in tensors().items() if names[name] == file}
        save_file(part, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (source / "lineage.json").write_text("{}")
    job = world.control.submit_job(world.spec())["id"]
    shutil.move(source, world.layout.job(job).export)

    def refuse(*_args: object, **_keywords: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr("llmos.control.model_files.os.link", refuse)
    ref = world.registry.register(job)
    assert digest(Path(world.registry.get(ref)["path"])) == digest(world.layout.job(job).export)
