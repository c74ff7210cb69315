"""Where documents come from: formats, places, and what is said about those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import DataError, NotFoundError
from llmos.files import read_json
from llmos.models import Tokenizer
from llmos.models.tokenizer import train_bpe
from llmos.spec import Source
from llmos.train import data, documents, locations
from llmos.train.data import Corpus, prepare
from llmos.train.documents import Document, Unusable
from llmos.train.work import here

Preparer = Callable[..., Corpus]
TEXTS = [f"text {number}: naïve ☃ " * (number + 1) for number in range(12)]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def prepared(tmp_path: Path, told: list[str]) -> Preparer:
    def run(*sources: Source | Path | str, **changes: Any) -> Corpus:
        options: dict[str, Any] = {"vocab_size": 300, "validation_fraction": 0.2, "data_dir": tmp_path / "data"}
        options |= {"chats": False, "unusable": "refuse", "report": told.append}
        options |= {"work_for": lambda _: here(told.append)}
        found = [source if isinstance(source, Source) else Source(path=(str(source),)) for source in sources]
        return prepare(found, **(options | changes))

    return run


def _jsonl(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def _texts(corpus: Corpus, source: int | None = None) -> set[str]:
    """The documents of a source, from their tokens; those that are held out without a number."""
    tokenizer = corpus.tokenizer()
    ids = corpus.validation()[:] if source is None else corpus.train(source)[:]
    ends = np.flatnonzero(ids == tokenizer.eos_id)
    return {tokenizer.decode(document.tolist()) for document in np.split(ids, ends[:-1] + 1)}


def test_every_format_holds_the_same_documents(prepared: Preparer, tmp_path: Path) -> None:
    lines = _jsonl(tmp_path / "a.jsonl", *({"text": text, "more": 1} for text in TEXTS), "", {"text": ""})
    body = _jsonl(tmp_path / "b.ndjson", *({"body": text} for text in TEXTS))
    columns = tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": range(13), "text": [*TEXTS, None]}), columns, row_group_size=5)
    corpora = [prepared(lines), prepared(Source(path=(str(body),), field="body")), prepared(columns)]
    for corpus in corpora:
        assert _texts(corpus, 0) | _texts(corpus) == set(TEXTS)
        assert _texts(corpus, 0).isdisjoint(_texts(corpus))
    assert len({corpus.digest for corpus in corpora}) == 3
    assert _texts(corpora[0]) == _texts(corpora[1]) == _texts(corpora[2])  # content decides the side, not the format
    as_text = prepared(Source(path=(str(lines),), format="text"))
    assert any('"text"' in text for text in _texts(as_text, 0))


@given(st.lists(st.text(alphabet="ab☃ ", max_size=9), min_size=1, max_size=9), st.integers(1, 40))
def test_a_file_read_in_pieces_is_the_file(texts: list[str], size: int) -> None:
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    fsspec.filesystem("memory").pipe("/pieces.jsonl", content)
    name = "memory://pieces.jsonl"
    parts = documents.pieces(name, "jsonl", "text", len(content), size)
    found = [item for part in parts for item in documents.read(part) if isinstance(item, Document)]
    assert [item.content.decode() for item in found] == [text for text in texts if text]
    for number, item in enumerate(found, 1):
        assert str(item.place).endswith(f"line {[i for i, text in enumerate(texts, 1) if text][number - 1]}")


def test_many_shards_hold_what_one_holds(prepared: Preparer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _jsonl(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS))
    one = prepared(path)
    monkeypatch.setattr(data, "GROUP_BYTES", 100)
    many = prepared(path, data_dir=tmp_path / "other")
    assert len(many.sources[0]) > 5 and many.digest == one.digest
    assert many.train()[:].tolist() == one.train()[:].tolist()
    assert many.validation()[:].tolist() == one.validation()[:].tolist()
    assert (many.gzip_bits, many.unigram_bits) == (one.gzip_bits, one.unigram_bits)
    for start in range(0, len(one.train()), 7):
        assert many.train()[start : start + 90].tolist() == one.train()[start : start + 90].tolist()


def test_files_elsewhere_are_read_through_pyarrow_and_fsspec(prepared: Preparer, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number, text in enumerate(TEXTS):
        memory.pipe(f"/corpus/{number % 2}/{number}.jsonl", json.dumps({"text": text}).encode())
    memory.pipe("/corpus/.hidden/0.jsonl", b"{}")
    assert len(locations.find("memory://corpus")) == 12
    assert len(locations.find("memory://corpus/1/*.jsonl")) == 6
    corpus = prepared("memory://corpus/**/*.jsonl")
    path = tmp_path / "text"
    path.mkdir()
    for number, text in enumerate(TEXTS):
        _jsonl(path / f"{number} %.jsonl", json.dumps({"text": text})[:-1] + "}").write_text(json.dumps({"text": text}))
    assert prepared(path) == prepared(f"file://{path}/*.jsonl") == corpus


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("memory://nowhere", NotFoundError, "there is no memory://nowhere"),
        ("memory://nowhere/*.txt", DataError, "no file matches memory://nowhere/"),
        ("zork://a", DataError, "zork://a cannot be opened: .*zork"),
        ("s3://a/b?zork=1", DataError, "s3://a/b.*cannot be opened: .*zork"),
    ],
)
def test_a_place_that_cannot_be_reached_is_named(
    prepared: Preparer, uri: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepared(uri)


BAD_LINES: list[tuple[object, str]] = [
    ("{", "line 2 is not JSON"),
    ("[1]", "line 2 is a JSON list: expected an object"),
    ({"body": "x"}, "line 2 has no field `text`: found body"),
    ({"text": 3}, "line 2 `text` is a int: expected text"),
    ('{"text": "\\ud800"}', "line 2 `text` has half a surrogate pair"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_or_left_out_aloud(
    prepared: Preparer, told: list[str], tmp_path: Path, line: object, message: str
) -> None:
    path = _jsonl(tmp_path / "a.jsonl", {"text": TEXTS[0]}, line, *({"text": text} for text in TEXTS[1:]))
    with pytest.raises(DataError, match=f"1 unusable documents:\n  {path}, {message}"):
        prepared(path)
    assert not (tmp_path / "data").exists()
    corpus = prepared(path, unusable="skip")
    assert _texts(corpus, 0) | _texts(corpus) == set(TEXTS)
    assert any(text.startswith("left out 1 unusable documents") and message in text for text in told)


def test_many_bad_lines_are_counted_and_some_named(prepared: Preparer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff"}\n' * 12 + b'{"text": "good"}\n')
    with pytest.raises(DataError) as caught:
        prepared(path)
    lines = caught.value.message.splitlines()
    assert lines[0] == "12 unusable documents:" and lines[-1] == "  and 2 more"
    assert "line 10 is not UTF-8: byte 0xff at offset 10 of the line" in lines[10]


def test_parquet_that_cannot_be_used(prepared: Preparer, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1, 2], "body": ["a", "b"]}), path)
    with pytest.raises(DataError, match=r"a.parquet has no column `content`: found text, body"):
        prepared(Source(path=(str(path),), field="content"))
    with pytest.raises(DataError, match=r"a.parquet: column `text` is int64: expected text"):
        prepared(path)
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match=r"a.parquet is not a Parquet file"):
        prepared(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "there is no text in .*a.jsonl"),
        ([{"text": ""}], "there are no documents: expected at least two"),
        ([{"text": "one"}], "there is one document only: expected at least two"),
        ([{"text": "one"}] * 5, "there is one document only: expected at least two"),
    ],
)
def test_too_few_documents(prepared: Preparer, tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepared(_jsonl(tmp_path / "a.jsonl", *lines))


def test_sources_keep_apart_and_share_the_rest(prepared: Preparer, tmp_path: Path) -> None:
    first = _jsonl(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS[:8]))
    second = _jsonl(tmp_path / "b.jsonl", *({"text": text} for text in TEXTS[8:]))
    corpus = prepared(first, second)
    assert _texts(corpus, 0) <= set(TEXTS[:8]) and _texts(corpus, 1) <= set(TEXTS[8:])
    assert _texts(corpus, 0) | _texts(corpus, 1) | _texts(corpus) == set(TEXTS)
    assert prepared(Source(path=(str(first),), weight=3.0), second) == corpus  # weights are not in the tokens
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=r"copy.jsonl of sources\[1\] is the same as .*a.jsonl of sources\[0\]"):
        prepared(first, copy)


CHAT = [{"role": "user", "content": "What is 2?"}, {"role": "assistant", "content": "A number."}]


def _chats(path: Path, count: int = 6) -> Path:
    system = {"role": "system", "content": "Answer."}
    more = [{"role": "user", "content": "And 3?"}, {"role": "assistant", "content": "\n  Another <|im_end|>"}]
    return _jsonl(path, *({"messages": [{**system, "content": f"Answer {n}."}, *CHAT, *more]} for n in range(count)))


def test_of_chats_the_assistants_tokens_count(prepared: Preparer, tmp_path: Path) -> None:
    corpus = prepared(_chats(tmp_path / "a.jsonl"), chats=True)
    tokenizer, stored = corpus.tokenizer(), corpus.train()[:]
    ids = np.where(stored < 0, ~stored, stored)
    assert corpus.chats and corpus.held_out.documents + sum(shard.documents for shard in corpus.sources[0]) == 6
    counted = tokenizer.decode(ids[stored >= 0].tolist())
    documents = sum(shard.documents for shard in corpus.sources[0])
    assert counted == "A number.\n  Another <|im_end|>" * documents  # typed by a person, so it is text
    ends = [token for token in ids[stored >= 0] if token in tokenizer.stop_ids]
    assert len(ends) == 2 * documents  # and the tokens that end the turns count as well
    held_out = (corpus.directory / "validation.txt").read_text()
    assert held_out == "A number.\n  Another <|im_end|>" * corpus.held_out.documents
    # a whole chat is what the template writes
    messages = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["messages"]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    turns = tokenizer.encode_turns(messages)
    spelled = "".join(
        tokenizer.spelling(token).decode("latin-1") for asked, answer in turns for token in asked + answer
    )
    assert spelled == whole


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "has no `messages`"),
        ([], "has no `messages`"),
        ([{"role": "user"}], r"`messages\[0\]` is not a message"),
        ([CHAT[0]], "has no words of the assistant"),
        ([CHAT[0], {"role": "assistant", "content": ""}], "has no words of the assistant"),
        ([{"role": "asistant", "content": "x"}], r"`messages\[0\]` has the role 'asistant': expected system, user"),
        ([{"role": "user", "content": [1]}], r"`messages\[0\]`: its content is a list: expected text"),
    ],
)
def test_a_chat_that_cannot_be_used_is_named(prepared: Preparer, tmp_path: Path, messages: Any, message: str) -> None:
    path = _jsonl(_chats(tmp_path / "a.jsonl"), {"messages": CHAT}, {"messages": messages})
    with pytest.raises(DataError, match=f"a.jsonl, line 2 {message}"):
        prepared(path, chats=True)


def test_what_is_no_chat_is_left_out_or_refused(prepared: Preparer, told: list[str], tmp_path: Path) -> None:
    (tmp_path / "chats").mkdir()
    _chats(tmp_path / "chats" / "a.jsonl")
    readme = tmp_path / "chats" / "README.md"
    readme.write_text("chats")
    assert prepared(tmp_path / "chats", chats=True).chats
    assert f"left out 1 file that is not chats: {readme}" in told
    with pytest.raises(DataError, match=r"README.md is read as text: expected JSON lines with `messages`"):
        prepared(readme, chats=True)


def test_a_template_that_rewrites_the_past_is_refused(prepared: Preparer, tmp_path: Path) -> None:
    tokenizer = train_bpe(["Answer. What is 2? A number."], 280)
    forgetful = "{{ messages[-1]['content'] }}<|im_end|>"
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(forgetful)
    with pytest.raises(DataError, match=r"a.jsonl, line 1: .*template changes what it wrote before `messages\[\d\]`"):
        prepared(_chats(tmp_path / "a.jsonl"), chats=True, tokenizer=Tokenizer.load(tmp_path / "tokenizer"))


def test_unusable_says_where_and_why() -> None:
    assert str(Unusable(documents.Place("a.parquet", row=3), "is bad")) == "a.parquet, row 3 is bad"


@pytest.mark.parametrize("damage", ["shorter", "beyond"])
def test_a_file_that_changes_while_it_is_read_is_named(prepared: Preparer, tmp_path: Path, damage: str) -> None:
    corpus = prepared(_jsonl(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS)))
    tokens, path = corpus.train(), corpus.directory / "train.bin"
    expected = tokens[:].tolist()
    if damage == "shorter":
        with path.open("r+b") as file:
            file.truncate(8)
        message = rf"{path} is damaged: it has 8 bytes, expected"
    else:
        with path.open("r+b") as file:
            file.write(b"\xff\xff")
        message = rf"{path}: token 65535 at 0 is beyond the vocabulary of {corpus.vocab_size}"
    with pytest.raises(DataError, match=message):
        tokens[len(expected) - 5 if damage == "shorter" else 0 :]
    path.unlink()
    if damage == "beyond":  # what was open stays readable
        assert tokens[1:].tolist() == expected[1:]
    with pytest.raises(DataError, match="is damaged"):
        Corpus.load(corpus.directory)
    assert read_json(corpus.directory / "corpus.json")["sources"][0][0][0] == "train"
