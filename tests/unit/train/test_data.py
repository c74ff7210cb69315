from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.errors import DataError, NotFoundError
from llmos.files import read_json, write_json
from llmos.models.tokenizer import train_bpe
from llmos.spec import Source
from llmos.train import data, encode, holdout, locations
from llmos.train.data import Corpus, prepare
from llmos.train.documents import Document, Piece, Place
from llmos.train.holdout import Census
from llmos.train.work import here

Preparer = Callable[..., Corpus]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twenty files in two directories."""
    for number in range(20):
        path = tmp_path / "source" / ("a" if number % 2 else "b/deep") / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}, naïve ☃\n" * (number + 2))
    return tmp_path / "source"


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def prepared(tmp_path: Path, told: list[str]) -> Preparer:
    def run(*paths: Path, **changes: Any) -> Corpus:
        options: dict[str, Any] = {"vocab_size": 300, "validation_fraction": 0.2, "data_dir": tmp_path / "data"}
        options |= {"chats": False, "unusable": "refuse", "report": told.append}
        options |= {"work_for": lambda _: here(told.append)}
        return prepare([Source(path=tuple(map(str, paths)))], **(options | changes))

    return run


def _texts(corpus: Corpus, part: str) -> list[str]:
    """The documents on one side, from their tokens."""
    tokenizer, ids = corpus.tokenizer(), (corpus.train() if part == "train" else corpus.validation())[:]
    ends = np.flatnonzero(ids == tokenizer.eos_id)
    assert ends[-1] == len(ids) - 1
    return [tokenizer.decode(document.tolist()) for document in np.split(ids, ends[:-1] + 1)]


def _read(*paths: Path) -> set[bytes]:
    return {Path(name).read_bytes() for path in paths for name in locations.find(str(path))}


def test_every_document_is_on_one_side_whole(prepared: Preparer, source: Path) -> None:
    corpus = prepared(source)
    train, held_out = _texts(corpus, "train"), _texts(corpus, "validation")
    assert sorted(train + held_out) == sorted(path.read_text() for path in source.rglob("*.txt"))
    assert 1 <= len(held_out) < len(train)
    assert (corpus.directory / "validation.txt").read_text() == "".join(held_out)
    assert corpus.validation_bytes == len("".join(held_out).encode())
    assert corpus.train_tokens == len(corpus.train())
    assert corpus.validation_tokens == len(corpus.validation())
    assert (corpus.directory / "train.bin").stat().st_size == 2 * corpus.train_tokens
    assert 0 < corpus.gzip_bits < 8 and 0 < corpus.unigram_bits < 8
    assert Corpus.load(corpus.directory) == corpus


def test_the_tokenizer_knows_nothing_of_held_out_text(prepared: Preparer, source: Path) -> None:
    corpus = prepared(source)
    alone = train_bpe(_texts(corpus, "train"), 300)
    assert alone.encode("naïve ☃ file") == corpus.tokenizer().encode("naïve ☃ file")
    assert corpus.vocab_size == alone.vocab_size


def test_the_second_time_nothing_is_trained(
    prepared: Preparer, source: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(source)
    monkeypatch.delattr(data, "train_bpe")
    assert prepared(source) == first
    assert told[-1] == f"using the corpus prepared before: {first.directory}"


def test_the_digest_is_of_content_not_of_place(prepared: Preparer, source: Path, tmp_path: Path) -> None:
    first = prepared(source)
    moved = source.rename(tmp_path / "elsewhere")
    assert prepared(moved / "**" / "*.txt") == first
    assert prepared(*sorted(moved.rglob("*.txt"), reverse=True)) == first
    changed = [prepared(moved, vocab_size=301), prepared(moved, validation_fraction=0.3)]
    changed.append(prepared(moved, tokenizer=train_bpe(["other words"], 280)))
    (moved / "a" / "1.txt").write_text("another text\n")
    changed.append(prepared(moved))
    assert len({corpus.digest for corpus in [first, *changed]}) == 5


def test_text_has_the_digest_that_it_always_had(prepared: Preparer, source: Path) -> None:
    whole = hashlib.sha256(json.dumps([2, 300, 0.2]).encode())
    for digest in sorted(hashlib.sha256(path.read_bytes()).digest() for path in source.rglob("*.txt")):
        whole.update(digest)
    corpus = prepared(source)
    assert corpus.digest == whole.hexdigest()
    description = read_json(corpus.directory / "corpus.json")
    for new in ("sources", "held_out", "chats"):
        del description[new]
    write_json(corpus.directory / "corpus.json", description)  # as corpora were described before
    assert Corpus.load(corpus.directory).train()[:].tolist() == corpus.train()[:].tolist()


def test_the_same_files_make_the_same_bytes(prepared: Preparer, source: Path, tmp_path: Path) -> None:
    first, second = prepared(source), prepared(source, data_dir=tmp_path / "other")
    names = {path.name for path in first.directory.iterdir()}
    expected = {"corpus.json", "train.bin", "validation.bin", "validation.txt"}
    assert names == expected | {"tokenizer.json", "tokenizer_config.json"}
    for name in names:
        assert (first.directory / name).read_bytes() == (second.directory / name).read_bytes()


def test_a_given_tokenizer_is_kept(prepared: Preparer, source: Path) -> None:
    tokenizer = train_bpe(["file and naïve"], 270)
    corpus = prepared(source, tokenizer=tokenizer)
    assert corpus.vocab_size == tokenizer.vocab_size
    assert "".join(_texts(corpus, "validation")) == (corpus.directory / "validation.txt").read_text()
    assert corpus.tokenizer().encode("file 3") == tokenizer.encode("file 3")


def test_a_vocabulary_beyond_16_bits_gets_wide_tokens(prepared: Preparer, source: Path, tmp_path: Path) -> None:
    corpus = prepared(source)
    wide = tmp_path / "wide"
    shutil.copytree(corpus.directory, wide)
    write_json(wide / "corpus.json", read_json(wide / "corpus.json") | {"vocab_size": 2**16 + 1})
    for part, tokens in (("train", corpus.train()), ("validation", corpus.validation())):
        tokens[:].astype("<u4").tofile(wide / f"{part}.bin")
    assert Corpus.load(wide).train()[:].tolist() == corpus.train()[:].tolist()


def test_copies_and_empty_files_are_left_out_aloud(prepared: Preparer, source: Path, told: list[str]) -> None:
    first = prepared(source)
    shutil.copy(source / "a" / "1.txt", source / "copy.txt")
    (source / "empty.txt").touch()
    assert prepared(source) == first
    assert "left out 2 files that are empty or copies of others" in told


def test_found_files_that_are_no_text_are_left_out_aloud(prepared: Preparer, source: Path, told: list[str]) -> None:
    first = prepared(source)
    (source / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    assert prepared(source) == first
    assert f"left out 1 file that is not UTF-8 text: {source / 'photo.jpg'}" in told
    for number in range(12):
        (source / f"{number}.jpg").write_bytes(b"\xff")
    assert prepared(source / "**") == first
    assert any(line.startswith("left out 13 files") and line.endswith(" and 3 more") for line in told)


def test_a_named_file_that_is_no_text_is_an_error(prepared: Preparer, source: Path) -> None:
    bad = source / "latin1.txt"
    bad.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin1.txt is not UTF-8 text: byte 0xef at offset 2"):
        prepared(source, bad)


def test_hidden_files_are_found_only_when_named(source: Path) -> None:
    hidden = source / ".git" / "config"
    hidden.parent.mkdir()
    hidden.write_text("secret")
    assert b"secret" not in _read(source) | _read(source / "**" / "*")
    assert b"secret" in _read(source, hidden)


def test_names_are_taken_as_they_are_before_they_are_globs(tmp_path: Path) -> None:
    for name in ("[a].txt", "a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "[d]").mkdir()
    (tmp_path / "[d]" / "x").write_text("in d")
    assert _read(tmp_path / "[a].txt") == {b"[a].txt"}
    assert _read(tmp_path / "?.txt") == {b"a.txt"}
    assert _read(tmp_path / "[d]") == {b"in d"}


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("missing.txt", NotFoundError, "there is no .*missing.txt: expected a file, a directory or a glob"),
        ("*.md", DataError, r"no file matches .*\*.md"),
        ("nothing", DataError, "there is no file below .*nothing"),
        ("empty.txt", DataError, "there is no text in .*empty.txt"),
        ("line.txt", DataError, "one file of one line: expected at least two"),
    ],
)
def test_what_cannot_be_used(
    prepared: Preparer, tmp_path: Path, path: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "line.txt").write_text("only one line\n")
    with pytest.raises(error, match=message):
        prepared(tmp_path / path)
    assert not (tmp_path / "data").exists()


def test_one_file_is_split_by_lines(prepared: Preparer, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {number}\n" for number in range(100)))
    corpus = prepared(path)
    assert _texts(corpus, "train") == ["".join(f"line {number}\n" for number in range(80))]
    assert _texts(corpus, "validation") == ["".join(f"line {number}\n" for number in range(80, 100))]


_documents = st.lists(
    st.binary(min_size=1).map(lambda content: Document.of(content, Place("a"))),
    min_size=2,
    max_size=30,
    unique_by=lambda d: d.digest,
)


def _sides(documents: list[Document], fraction: float) -> tuple[set[bytes], set[bytes]]:
    split = holdout.split(Census(holdout.limit_of(fraction)).count(documents))
    parts = [part for document in documents for part in split.parts(document)]
    held_out = {document.content for is_held_out, document in parts if is_held_out}
    return {document.content for document in documents} - held_out, held_out


@given(_documents, st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_split_fills_both_sides_with_the_lowest_digests_on_one(documents: list[Document], fraction: float) -> None:
    train, held_out = _sides(documents, fraction)
    assert train and held_out
    in_order = [document.content for document in sorted(documents, key=lambda document: document.digest)]
    assert set(in_order[: len(held_out)]) == held_out
    share = sum(int.from_bytes(d.digest[:8], "big") < fraction * 2**64 for d in documents)
    assert len(held_out) == min(max(share, 1), len(documents) - 1)


@given(st.lists(st.sampled_from([b"a", b"", b"bc"]), min_size=2, max_size=30), st.floats(0.001, 0.999))
def test_lines_are_kept_and_fill_both_sides(lines: list[bytes], fraction: float) -> None:
    content = b"\n".join([*lines, b"end"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdout, "read", lambda _: [Document.of(content, Place("a"))])
        split = holdout.split_lines(Piece("a", "text", "", 0, 9), fraction)
    (_, train), (_, held_out) = split.parts(Document.of(content, Place("a")))
    assert train.content and held_out.content and train.content + held_out.content == content


def test_a_document_keeps_its_side_when_others_come() -> None:
    documents = [Document.of(str(number).encode(), Place("a")) for number in range(1000)]
    held_out, later = _sides(documents[:500], 0.1)[1], _sides(documents, 0.1)[1]
    assert held_out == later & {d.content for d in documents[:500]}
    assert 60 < len(later) < 140  # 100 ± 4 standard deviations


@settings(max_examples=30)
@given(st.text(alphabet="ab\n ☃", max_size=60), st.integers(1, 9))
def test_pieces_add_up_and_end_with_lines(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_CUT", size)
        pieces = list(encode.cut(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)
    assert all(piece.endswith("\n") or "\n" not in piece for piece in pieces[:-1])


def test_many_at_once_make_one_corpus(prepared: Preparer, source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: prepared(source), range(4)))
    assert len(set(made)) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == [made[0].digest]


def test_the_second_of_two_uses_what_the_first_made(
    prepared: Preparer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = data._publish

    def late(directory: Path, target: Path) -> None:
        shutil.copytree(directory, target)
        publish(directory, target)

    monkeypatch.setattr(data, "_publish", late)
    corpus = prepared(source)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [corpus.digest]


def test_failing_leaves_nothing(
    prepared: Preparer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(data.baselines, "unigram_bits")
    with pytest.raises(AttributeError):
        prepared(source)
    assert list((tmp_path / "data").iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_a_day(prepared: Preparer, source: Path, tmp_path: Path) -> None:
    old, recent = tmp_path / "data" / ".new-old", tmp_path / "data" / ".new-recent"
    for path in (old, recent):
        (path / "corpus").mkdir(parents=True)
    os.utime(old, (0, 0))
    prepared(source)
    assert recent.exists() and not old.exists()


@pytest.mark.parametrize("name", ["corpus.json", "train.bin", "validation.bin", "validation.txt"])
@pytest.mark.parametrize("missing", [True, False])
def test_damage_is_seen(prepared: Preparer, source: Path, name: str, missing: bool) -> None:
    corpus = prepared(source)
    path = corpus.directory / name
    if missing:
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(DataError, match=r"is damaged: .*\n  Delete"):
        Corpus.load(corpus.directory)
    with pytest.raises(DataError, match="is damaged"):
        prepared(source)
