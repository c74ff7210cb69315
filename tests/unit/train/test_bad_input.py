"""Bad input, as a user meets it: each is refused or survived with one message, and earlier checkpoints stay."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from llmos.models import ModelConfig, Transformer
from llmos.parallel.layers import split_layers
from llmos.parallel.world import World
from llmos.spec import to_dict
from llmos.train import __main__ as command_line
from llmos.train import checkpoint
from llmos.train.start import shape
from llmos.train.step import rank_mesh, spread
from llmos.train.training import Training

SHAPE = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_layers": 3, "num_heads": 4},
    **{"num_kv_heads": 2, "head_dim": 8, "max_position": 64},
}
Told = tuple[int, str]


@pytest.fixture
def run(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., Told]:
    """What ``python -m llmos.train SPEC`` returns and says on stderr, in this process."""
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(ModelConfig(**SHAPE, tie_embeddings=True).to_hf()))

    def command(*more: str, **changes: Any) -> Told:
        if "data" in changes:
            changes["data"] = {**trainer.data, **changes["data"]}
        fields = {**to_dict(trainer.job()), "mesh": {"dp": 1}, "workers": None, "model": {"preset": "nano"}, **changes}
        spec = tmp_path / "job.yaml"
        spec.write_text(yaml.safe_dump({name: value for name, value in fields.items() if value is not None}))
        arguments = ["llmos.train", str(spec), "--state-dir", str(trainer.layout.root), *more]
        monkeypatch.setattr(sys, "argv", arguments)
        root = logging.getLogger()
        handlers, root.handlers = root.handlers, []  # the command line makes its own, on today's stderr
        try:
            code = command_line.main()
        finally:
            root.handlers = handlers
        return code, capsys.readouterr().err

    return command


SHAPED = {"config": "{tmp}/shape"}


@pytest.mark.parametrize(
    ("changes", "more", "expected"),
    [
        # a world size that does not factor
        ({"mesh": {"dp": 2, "tp": 2}, "workers": {"min": 3, "max": 3}}, [], "`mesh` has 4 ranks: expected 3"),
        ({"mesh": {"fsdp": 2}}, ["--nproc", "3"], "does not fit on 3 ranks: expected a multiple of the 2 ranks"),
        # layers, heads, the sequence
        ({"mesh": {"pp": 16}, "batch_size": 16}, [], "pp 16 × 1 stages a rank need 16 layers; preset `nano` has 2"),
        ({"model": SHAPED, "mesh": {"pp": 4}}, ["--nproc", "4"], "need as many layers: the model has 3"),
        ({"mesh": {"tp": 3}, "sequence_length": 33}, [], "`tp: 3` does not divide the 4 heads of preset `nano`"),
        ({"model": SHAPED, "mesh": {"tp": 4}}, ["--nproc", "4"], "`tp: 4` does not divide the model's 2 key and value"),
        ({"sequence_length": 9999}, [], "`sequence_length: 9999` is too long: expected at most 1024"),
        ({"model": SHAPED, "sequence_length": 128}, [], "128` is too long: the model is made for at most 64"),
        # an empty or tiny dataset
        ({"data": {"path": "{tmp}/nowhere"}}, [], "there is no {tmp}/nowhere: expected a file, a directory or a glob"),
        ({"data": {"path": "{tmp}/empty"}}, [], "there is no text in {tmp}/empty/a.txt: expected some"),
        ({"data": {"path": "{tmp}/line"}}, [], "one file of one line: expected at least two lines"),
        ({"data": {"path": "{tmp}/tiny"}}, [], "tokens: expected more than `sequence_length: 32`"),
        ({"model": {"config": "{tmp}/nowhere"}}, [], "there is no {tmp}/nowhere/config.json"),
        ({"model": {"ref": "nobody@3"}}, [], "no model `nobody@3`: found none of that name"),
    ],
)
def test_what_is_refused_before_the_first_step(
    run: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, more: Any, expected: str
) -> None:
    for name, text in (("empty", ""), ("line", "one line only\n"), ("tiny", "two\nlines\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(text)
    here = json.loads(json.dumps(changes).replace("{tmp}", str(tmp_path)))
    if more == ["--nproc", "4"] or more == ["--nproc", "3"]:
        monkeypatch.setattr(command_line, "train_on_ranks", _as_if_on(int(more[1])))
    code, told = run(*more, **here)
    assert code in (1, 2) and "Traceback" not in told
    assert told.count("error: ") == 1 and expected.replace("{tmp}", str(tmp_path)) in told


def _as_if_on(ranks: int) -> Any:
    """Training that sees ``ranks`` ranks, and gets no further than being told that the mesh does not fit."""

    def begin(run: Any, _: int) -> Any:
        world = World(0, ranks)
        return spread(run.job, Transformer(shape(run.job)), rank_mesh(run.job, world))

    return begin


def test_layers_that_do_not_divide_are_split_unevenly() -> None:
    assert [len(cut) for cut in split_layers(7, 2, 0.5)] == [4, 3]


def test_a_token_beyond_the_vocabulary_ends_training_and_keeps_checkpoints(
    run: Callable[..., Told], trainer: Any
) -> None:
    assert run("--steps", "6", steps=6)[0] == 0
    dirs = trainer.layout.job("tiny")
    (dirs.export / "lineage.json").unlink()
    dirs.export.rename(dirs.root / "before")
    corpus = next(trainer.layout.data.iterdir())
    tokens = np.fromfile(corpus / "train.bin", dtype="<u2")
    np.full_like(tokens, 299).tofile(corpus / "train.bin")
    (dirs.checkpoints / "step-00000006").rename(dirs.root / "step-6")
    code, told = run(steps=6)
    assert code == 1 and "train.bin: token 299 at " in told and "beyond the vocabulary of 280" in told
    assert "Delete" in told and "it is made again from the text" in told and "Traceback" not in told


@pytest.mark.parametrize("cut", [True, False])
def test_a_shard_that_goes_away_in_the_middle(
    run: Callable[..., Told], trainer: Any, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """One that is deleted stays readable; one that is cut off ends training, whose checkpoints stay."""
    advance = Training.advance

    def losing(self: Training, stop: bool = False) -> Any:
        if self.step == 7:
            shard = self.corpus.directory / "train.bin"
            os.truncate(shard, 10) if cut else shard.unlink()
        return advance(self, stop)

    monkeypatch.setattr(Training, "advance", losing)
    code, told = run()
    assert "Traceback" not in told
    if not cut:
        assert code == 0
        return
    assert code == 1 and "train.bin is damaged: it has 10 bytes, expected " in told
    assert [step for step, _ in checkpoint.saved(trainer.layout.job("tiny").checkpoints)] == [6]


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Makes files of more than so many bytes impossible, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_stops_training_at_its_end_and_keeps_what_is_there(
    run: Callable[..., Told], trainer: Any, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[int], None]
) -> None:
    advance = Training.advance

    def filling(self: Training, stop: bool = False) -> Any:
        if self.step == 8:
            self.wait_saved()
            small_disk(100_000)
        return advance(self, stop)

    monkeypatch.setattr(Training, "advance", filling)
    code, told = run()
    assert code == 1 and "Traceback" not in told
    assert "CHECKPOINT NOT SAVED: cannot write checkpoint" in told and "step-00000012: File too large" in told
    assert "Make room or repair the storage; the next attempt resumes from the checkpoint before this one." in told
    saved = checkpoint.saved(trainer.layout.job("tiny").checkpoints)
    assert [step for step, _ in saved] == [6]
    checkpoint.verify(saved[0][1])
    assert not list(trainer.layout.job("tiny").checkpoints.glob(f"{checkpoint.TEMPORARY}*"))


def test_a_disk_that_is_full_before_there_is_a_corpus(
    run: Callable[..., Told], trainer: Any, small_disk: Callable[[int], None]
) -> None:
    small_disk(4096)
    code, told = run()
    assert code == 1 and "Traceback" not in told
    assert "File too large" in told and "Make room" in told
    assert not list(trainer.layout.data.glob("*"))


def test_a_checkpoint_of_another_model(run: Callable[..., Told], trainer: Any, tmp_path: Path) -> None:
    assert run()[0] == 0
    dirs = trainer.layout.job("tiny")
    dirs.export.rename(dirs.root / "before")
    code, told = run(model={"config": str(tmp_path / "shape")})
    assert code == 1 and "was made by another spec: `model.preset` was 'nano', is now None" in told
    assert "or delete" in told and "to start over" in told
    assert [step for step, _ in checkpoint.saved(dirs.checkpoints)] == [12, 6]


def _allocate(*_: Any, **__: Any) -> Any:
    return torch.empty(2**50)


def _on_gpu(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("fails", "detail"), [(_allocate, "can't allocate memory"), (_on_gpu, "CUDA out of memory. Tried to allocate 2.00")]
)
def test_out_of_memory_says_what_would_fit(
    run: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, fails: Any, detail: str
) -> None:
    monkeypatch.setattr(Training, "_differentiate", fails)
    code, told = run(batch_size=32, micro_batch_size=32, sequence_length=256, resources={"memory": "2GiB"})
    assert code == 1 and "Traceback" not in told
    assert "rank 0 is out of memory" in told and detail in told and "it may use 2.0 GiB" in told
    assert "What would fit: `micro_batch_size: 16`" in told
    assert "with `activation_checkpointing: full`" in told and "mesh" in told
