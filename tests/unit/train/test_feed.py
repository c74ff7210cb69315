"""What each step reads: mixed, packed, ahead of time, and the same on however many ranks."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import DataError
from llmos.spec import Source, TrainJob
from llmos.spec.data import MIXTURE_BLOCK
from llmos.train import rows
from llmos.train.batch import Batch
from llmos.train.data import Corpus, prepare
from llmos.train.feed import Feed
from llmos.train.mixture import Mixture
from llmos.train.rows import HeldOutText, batch, held_out_rows, pack
from llmos.train.work import here

CPU = torch.device("cpu")


@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=6), st.integers(0, 1000), st.integers(0, 5000))
def test_a_mixture_takes_every_sample_of_each_source_once(weights: list[float], seed: int, start: int) -> None:
    mixture = Mixture.of(weights, seed)
    sources, ordinals = mixture.at(0, 3 * MIXTURE_BLOCK)
    for source, weight in enumerate(weights):
        taken = ordinals[sources == source]
        assert taken.tolist() == list(range(len(taken)))  # in order, none skipped
        assert len(taken) / len(sources) == pytest.approx(weight / sum(weights), abs=2 / MIXTURE_BLOCK)
    part = mixture.at(start % 2000, start % 2000 + 40)
    assert part[0].tolist() == sources[start % 2000 :][:40].tolist()
    assert part[1].tolist() == ordinals[start % 2000 :][:40].tolist()


def test_a_mixture_is_mixed_at_every_length() -> None:
    sources, _ = Mixture.of([3, 1], seed=0).at(0, 200)
    assert 30 < (sources == 1).sum() < 70  # 50 ± 3 standard deviations


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(4, 15), st.data())
def test_packing_keeps_documents_whole_and_in_order(lengths: list[int], width: int, more: st.DataObject) -> None:
    ends = np.cumsum(lengths)
    begins = ends - np.array(lengths)
    left_out = np.array(more.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    found = pack(begins, ends, left_out, width).tolist()
    assert all(0 < stop - start <= width for start, stop in found)
    inside = [[n for n in range(len(lengths)) if start <= begins[n] < stop] for start, stop in found]
    assert [n for row in inside for n in row] == [n for n in range(len(lengths)) if not left_out[n]]
    for (_, stop), row in zip(found, inside, strict=True):
        assert stop == ends[row[-1]] or (len(row) == 1 and lengths[row[0]] > width)
    for (start, _), following in zip(found, inside[1:], strict=False):  # no row has room for the next document
        between = range(0, following[0])
        adjacent = not left_out[following[0] - 1] and following[0] - 1 in between
        assert not adjacent or ends[following[0]] - start > width


@pytest.fixture
def corpora(tmp_path: Path) -> Callable[..., Corpus]:
    """A corpus of texts in two sources, or one of chats."""
    words = ["we", "read", "what", "others", "wrote", "until", "both", "were", "one"]

    def line(n: int, chats: bool) -> str:
        text = " ".join(words[(n * 5 + i * i) % len(words)] for i in range(5 + n % 9))
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text} {n}"}]
        return json.dumps({"messages": messages} if chats else {"text": f"{n} {text}"})

    def make(chats: bool = False) -> Corpus:
        names = []
        for source in range(2):
            path = tmp_path / f"{'chats' if chats else 'texts'}-{source}.jsonl"
            path.write_text("\n".join(line(n, chats) for n in range(source * 100, source * 100 + 60)))
            names.append(str(path))
        sources = [Source(path=(name,)) for name in names]
        options: dict[str, Any] = {"vocab_size": 300, "validation_fraction": 0.1, "data_dir": tmp_path / "data"}
        silent = lambda _: None  # noqa: E731
        options |= {"chats": chats, "unusable": "refuse", "report": silent, "work_for": lambda _: here(silent)}
        return prepare(sources, **options)

    return make


@pytest.fixture
def job(trainer: Any) -> Callable[..., TrainJob]:
    def make(**changes: Any) -> TrainJob:
        sources = [{"path": "a.jsonl", "weight": 3.0}, {"path": "b.jsonl"}]
        data = {"sources": sources} | changes.pop("data", {})
        found = trainer.job(data=data, **changes)
        assert isinstance(found, TrainJob)
        return found

    return make


def _feed(job: TrainJob, corpus: Corpus, share: range | None = None, log: Path | None = None) -> Feed:
    return Feed(job, corpus, share or range(job.batch_size), CPU, lambda _: None, log)


@pytest.mark.parametrize("chats", [False, True])
@pytest.mark.parametrize("step", [0, 29])
def test_ranks_read_together_what_one_reads(
    corpora: Callable[..., Corpus], job: Callable[..., TrainJob], chats: bool, step: int
) -> None:
    corpus, spec = corpora(chats), job(objective="sft" if chats else "pretrain")
    alone, _ = _feed(spec, corpus).take(step)
    parts = [_feed(spec, corpus, range(*share)).take(step)[0] for share in ((0, 1), (1, 4))]
    assert torch.equal(torch.cat([part.tokens_BT for part in parts]), alone.tokens_BT)
    assert torch.equal(torch.cat([part.targets_BT for part in parts]), alone.targets_BT)
    assert (alone.documents_BT is None) == (not chats)


def test_an_epoch_reads_each_row_of_each_source_once(
    corpora: Callable[..., Corpus], job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    corpus, spec = corpora(), job(steps=400)
    feed = _feed(spec, corpus, log=tmp_path / "ids")
    for step in range(150):
        feed.take(step)
    logged = [json.loads(line) for line in (tmp_path / "ids").read_text().splitlines()]
    assert [row["step"] for row in logged] == list(range(1, 151))
    ids = Counter(id for row in logged for id in row["ids"])
    assert len(ids) == 600 and set(ids.values()) == {1}  # nothing twice
    for source in (0, 1):
        length = spec.sequence_length
        count = rows.training_rows(corpus, source, length, spec.seed, lambda _: None).count
        visited = [tuple(map(int, id.split("/")[1:])) for id in ids if id.startswith(f"{source}/")]
        assert len(visited) > count  # more than an epoch
        for first in range(0, len(visited), count):  # each epoch every row once, the last one as far as it came
            epoch = visited[first : first + count]
            assert {number for number, _ in epoch} == {first // count}
            assert len({row for _, row in epoch}) == len(epoch)


def test_the_next_steps_are_read_while_this_one_is_computed(
    corpora: Callable[..., Corpus], job: Callable[..., TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, threads = Feed._read, []

    def slow(self: Feed, step: int) -> Any:
        threads.append(threading.current_thread())
        time.sleep(0.1)
        return read(self, step)

    monkeypatch.setattr(Feed, "_read", slow)
    feed = _feed(job(), corpora())
    _, first_s = feed.take(0)
    time.sleep(0.25)  # a step
    _, second_s = feed.take(1)
    assert first_s >= 0.1 and second_s < 0.05
    assert threading.main_thread() not in threads


def test_steps_may_be_taken_in_any_order(corpora: Callable[..., Corpus], job: Callable[..., TrainJob]) -> None:
    feed, spec = _feed(job(), corpora()), job()
    steps = [0, 1, 7, 3, 11]
    taken = [feed.take(step)[0].tokens_BT for step in steps]
    for step, tokens in zip(steps, taken, strict=True):
        assert torch.equal(_feed(spec, corpora()).take(step)[0].tokens_BT, tokens)


def test_what_goes_wrong_while_reading_ends_the_step(
    corpora: Callable[..., Corpus], job: Callable[..., TrainJob]
) -> None:
    corpus = corpora()
    feed = _feed(job(steps=1000), corpus)
    feed.take(0)
    for shards in corpus.sources:
        with (corpus.directory / f"{shards[0].name}.bin").open("r+b") as file:
            file.truncate(10)
    with pytest.raises(DataError, match=r"train\S*.bin is damaged: it has 10 bytes"):
        feed.take(100)


def test_documents_of_a_text_begin_at_the_token_that_ends_the_one_before() -> None:
    end, length = 9, 6
    tokens: Any = np.array([1, 2, end, 3, 4, end, 5, 6, 7, 8])
    held_out = HeldOutText(tokens, end, length)
    assert held_out.count == 2
    found = batch([held_out.read(0, 0), held_out.read(0, 1)], length, mask=True)
    assert found.documents_BT is not None
    assert found.tokens_BT.tolist() == [[1, 2, end, 3, 4, end], [5, 6, 7, 8, 0, 0]]
    assert found.targets_BT.tolist() == [[2, end, 3, 4, end, 5], [6, 7, 8, -1, -1, -1]]
    assert found.documents_BT.tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6]
    assert batch([held_out.read(0, 0)], length, mask=False).documents_BT is None


def test_rows_of_chats_hold_whole_chats(corpora: Callable[..., Corpus]) -> None:
    corpus, told = corpora(chats=True), []
    found = held_out_rows(corpus, 128, told.append)
    packed = batch((found.read(0, row) for row in range(found.count)), 128, mask=True)
    tokenizer, start = corpus.tokenizer(), corpus.tokenizer().encode_turns([{"role": "user", "content": "x"}])[0][0][0]
    assert packed.documents_BT is not None
    for tokens, documents in zip(packed.tokens_BT, packed.documents_BT, strict=True):
        for begin in documents.unique().tolist():
            assert tokens[begin] == start and (begin == 0 or tokens[begin - 1] != tokenizer.eos_id)
    assert packed.counted == (corpus.validation()[:] >= 0).sum()
    assert not told
    cut = held_out_rows(corpus, 40, told.append)
    assert cut.count > 0 and any("their ends are cut off" in text for text in told)
    with pytest.raises(DataError, match="no chat has an answer within `sequence_length: 4` tokens"):
        held_out_rows(corpus, 4, told.append)


def test_a_source_without_a_row_is_refused(corpora: Callable[..., Corpus], job: Callable[..., TrainJob]) -> None:
    with pytest.raises(DataError, match="tokens: expected more than `sequence_length: 900"):
        _feed(job(sequence_length=900), corpora())


def test_batches_split_into_parts_that_add_up() -> None:
    whole = Batch.of(torch.arange(35).reshape(5, 7) - 8, torch.zeros(5, 6, dtype=torch.int64))
    parts = list(whole.split(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.targets_BT for part in parts]), whole.targets_BT)
    assert whole.tokens_BT[0].tolist() == [7, 6, 5, 4, 3, 2] and whole.counted == 30 - 6
