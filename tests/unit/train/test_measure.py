"""``llmos eval``: the numbers are those of training, and those of a plain computation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from llmos.compression import compress
from llmos.errors import DataError, LlmosError, ModelError, NotFoundError, UsageError
from llmos.evaluation import Sampling, evaluate
from llmos.files import write_json
from llmos.layout import Layout
from llmos.models import Tokenizer, weights
from llmos.models.tokenizer import train_bpe
from llmos.spec import to_dict
from llmos.train.conversation import encode
from tests.unit.models.small import make

QUIET = Sampling(count=0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model nobody trained, with a tokenizer of 280 tokens and a template for chats."""
    directory = tmp_path / "model"
    directory.mkdir()
    tokenizer = train_bpe(["two and two are four, and four and four are eight\n" * 20], 280)
    weights.save_model(make(vocab_size=280, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id), directory)
    tokenizer.save(directory)
    return directory


def test_it_measures_what_training_measured_of_an_export_and_of_a_checkpoint(trainer: Any, tmp_path: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("".join(f"line {n} of a text, {n * n}\n" for n in range(200)))
    changes = {"data": trainer.data | {"path": str(text)}}
    measured = trainer.train(**changes).metrics
    dirs = trainer.layout.job("tiny")
    write_json(dirs.spec, to_dict(trainer.job(**changes)))
    held_out = next(trainer.layout.data.glob("*/validation.txt"))
    said: list[str] = []
    of_export = evaluate(str(dirs.export), [str(held_out)], trainer.layout, said.append, sampling=Sampling(count=1))
    assert of_export["loss"] == pytest.approx(measured["validation_loss"], rel=1e-6)
    assert of_export["bits_per_byte"] == pytest.approx(measured["bits_per_byte"], rel=1e-6)
    assert of_export["gzip_bits"] == pytest.approx(measured["gzip_bits"])
    assert of_export["perplexity"] == pytest.approx(math.exp(measured["validation_loss"]), rel=1e-6)
    assert (of_export["documents"], of_export["sequence_length"]) == (1, 32)
    assert [sample["prompt"][:5] for sample in of_export["samples"]] == ["line "]
    newest = dirs.checkpoints / "step-00000012"
    of_checkpoint = evaluate(str(newest), [str(held_out)], trainer.layout, said.append, sampling=QUIET)
    assert of_checkpoint["loss"] == of_export["loss"] and f"exporting {newest}" in said
    dirs.spec.unlink()
    with pytest.raises(NotFoundError, match="expected the spec of the job"):
        evaluate(str(newest), [str(held_out)], trainer.layout, print, sampling=QUIET)


def test_a_quantized_model_is_measured_as_what_it_stands_for(model: Path, tmp_path: Path) -> None:
    """In rows as long as those that the original was trained on."""
    write_json(model / "lineage.json", {"spec": {"sequence_length": 24}})
    small, same, text = tmp_path / "small", tmp_path / "same", tmp_path / "one.txt"
    compress(str(model), 4, lambda: pytest.fail("no cluster is needed"), lambda done, of: None, out=small)
    weights.save_model(weights.load_model(small, torch.float32, dequantize=True), same)
    Tokenizer.load(model).save(same)
    text.write_text("two and two are four\n" * 40)
    losses = [
        evaluate(str(directory), [str(text)], Layout(tmp_path), print, sequence=sequence, sampling=QUIET)["loss"]
        for directory, sequence in ((small, None), (same, 24), (model, 24), (small, 23))
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_of_chats_the_assistants_tokens_count(model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four."}]
    chats = [turns, [*turns, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "eight"}]]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    path = str(tmp_path / "chats.jsonl")
    found = evaluate(
        *(str(model), [path], Layout(tmp_path), print),
        format="chat",
        sequence=200,
        sampling=Sampling(prompts=("four and four?", ""), max_tokens=4),
    )
    tokenizer, whole, nats, counted = Tokenizer.load(model), weights.load_model(model, torch.float32), 0.0, 0
    for chat in chats:
        ids = encode(tokenizer, chat)
        plain = torch.tensor([[token if token >= 0 else ~token for token in ids]])
        with torch.no_grad():
            logprobs = log_softmax(whole(plain), dim=-1)[0, :-1]
        for place, token in enumerate(ids[1:]):
            if token >= 0:
                nats, counted = nats - float(logprobs[place, token]), counted + 1
    assert (found["chats"], found["documents"], found["tokens"]) == (True, 2, counted)
    assert found["loss"] == pytest.approx(nats / counted, rel=1e-5)
    said = sum(len(turn["content"]) for chat in chats for turn in chat if turn["role"] == "assistant")
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / said, rel=1e-5)
    assert [sample["prompt"] for sample in found["samples"]] == ["four and four?", ""]


@pytest.mark.parametrize(
    ("named", "data", "more", "error", "message"),
    [
        ("coder", "a.txt", {}, NotFoundError, "no model `coder`: found none of that name"),
        ("./nowhere", "a.txt", {}, NotFoundError, "no directory `./nowhere`: expected a directory with a model"),
        (None, "nothing.txt", {}, DataError, "there is no text in"),
        (None, "missing.txt", {}, NotFoundError, "missing.txt"),
        (
            None,
            "a.txt",
            {"sequence": 257},
            UsageError,
            "`--sequence 257` is too long: the model is made for at most 256",
        ),
        (None, "a.jsonl", {}, DataError, "1 unusable documents"),
    ],
)
def test_what_cannot_be_measured(
    model: Path,
    tmp_path: Path,
    named: str | None,
    data: str,
    more: dict[str, Any],
    error: type[LlmosError],
    message: str,
) -> None:
    (tmp_path / "a.txt").write_text("four and four are eight")
    (tmp_path / "nothing.txt").write_text("")
    (tmp_path / "a.jsonl").write_text('{"words": "four"}\n')
    options = {"sampling": QUIET} | more
    with pytest.raises(error, match=message):
        evaluate(named or str(model), [str(tmp_path / data)], Layout(tmp_path / "state"), print, **options)


def test_a_tokenizer_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("four")
    weights.save_model(make(vocab_size=265), model)
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the model 265"):
        evaluate(str(model), [str(tmp_path / "a.txt")], Layout(tmp_path), print, sampling=QUIET)
