from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.control import journal
from llmos.control.journal import newest_metrics, read_log, read_metrics
from llmos.errors import UsageError
from llmos.layout import JobDirs


def write_logs(root: Path, logs: list[bytes]) -> JobDirs:
    dirs = JobDirs(root)
    for number, log in enumerate(logs, 1):
        dirs.attempt(number).root.mkdir(parents=True, exist_ok=True)
        dirs.attempt(number).log.write_bytes(log)
    return dirs


def write_rows(root: Path, attempts: list[range]) -> JobDirs:
    dirs = JobDirs(root)
    for number, steps in enumerate(attempts, 1):
        dirs.attempt(number).root.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"step": step, "by": number}) + "\n" for step in steps]
        dirs.attempt(number).metrics.write_text("".join(lines))
    return dirs


@given(logs=st.lists(st.text(max_size=20), max_size=4), piece=st.integers(4, 9))
def test_pieces_put_together_are_the_logs(
    tmp_path_factory: pytest.TempPathFactory, logs: list[str], piece: int
) -> None:
    dirs = write_logs(tmp_path_factory.mktemp("job"), [log.encode() for log in logs])
    whole, offset = "", 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "PIECE_BYTES", piece)
        while (answer := read_log(dirs, len(logs), offset, final=True))["text"]:
            assert len(answer["text"].encode()) <= piece
            whole, offset = whole + answer["text"], answer["offset"]
    assert whole == "".join(logs)


def test_a_character_that_is_not_whole_yet_waits(tmp_path: Path) -> None:
    dirs = write_logs(tmp_path, ["naïve".encode()[:3]])
    first = read_log(dirs, 1, 0, final=False)
    assert first["text"] == "na"
    write_logs(tmp_path, ["naïve".encode()])
    assert read_log(dirs, 1, first["offset"], final=False)["text"] == "ïve"
    write_logs(tmp_path, [b"na\xc3"])
    assert read_log(dirs, 1, 0, final=True)["text"] == "na\ufffd"  # it never came
    assert read_log(write_logs(tmp_path, [b"a\xffb"]), 1, 0, final=False)["text"] == "a\ufffdb"


def test_late_lines_of_an_old_attempt_do_not_shift_the_next(tmp_path: Path) -> None:
    dirs = write_logs(tmp_path, [b"one\n", b"two\n"])
    seen = read_log(dirs, 2, 0, final=False)
    assert seen["text"] == "one\ntwo\n"
    write_logs(tmp_path, [b"one\nlate\n", b"two\nthree\n"])
    assert read_log(dirs, 2, seen["offset"], final=False)["text"] == "three\n"


def test_attempts_without_a_log(tmp_path: Path) -> None:
    dirs = write_logs(tmp_path, [b"one\n"])
    assert read_log(dirs, 3, 0, final=True)["text"] == "one\n"
    assert read_log(dirs, 0, 0, final=False) == {"text": "", "offset": 1 << 40, "final": False}


@pytest.mark.parametrize("offset", [-1, 2**53])
def test_offsets_that_cannot_be(tmp_path: Path, offset: int) -> None:
    with pytest.raises(UsageError, match=f"offset {offset}"):
        read_log(JobDirs(tmp_path), 1, offset, final=False)


def test_a_log_of_many_pieces(tmp_path: Path) -> None:
    text = "".join(random.Random(0).choices("aé€😀\n", k=400_000))
    dirs, whole, offset = write_logs(tmp_path, [text.encode()]), "", 0
    while (answer := read_log(dirs, 1, offset, final=True))["text"]:
        whole, offset = whole + answer["text"], answer["offset"]
    assert whole == text


def steps(dirs: JobDirs, attempts: int, after: int = 0) -> list[tuple[int, int]]:
    return [(row["step"], row["by"]) for row in read_metrics(dirs, attempts, after)]


def test_the_newest_attempt_counts_where_attempts_overlap(tmp_path: Path) -> None:
    dirs = write_rows(tmp_path, [range(1, 6), range(4, 5), range(0)])
    assert steps(dirs, 3) == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert steps(dirs, 3, after=2) == [(3, 1), (4, 2)] and steps(dirs, 3, after=4) == []
    assert newest_metrics(dirs, 3) == {"step": 4, "by": 2}
    assert newest_metrics(JobDirs(tmp_path / "nothing"), 3) == {}


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=4),
    after=st.integers(0, 20),
    block=st.integers(1, 80),
)
def test_rows_are_those_of_a_plain_reading(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, int]], after: int, block: int
) -> None:
    attempts = [range(first, first + length) for first, length in lengths]
    expected: dict[int, int] = {}
    for number, steps_of in enumerate(attempts, 1):
        expected = {step: by for step, by in expected.items() if not steps_of or step < steps_of[0]}
        expected |= dict.fromkeys(steps_of, number)
    dirs = write_rows(tmp_path_factory.mktemp("job"), attempts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_BLOCK_BYTES", block)
        found = steps(dirs, len(attempts), after)
    assert found == [(step, by) for step, by in sorted(expected.items()) if step > after]


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    dirs = write_rows(tmp_path, [range(1, 3)])
    with dirs.attempt(1).metrics.open("a") as file:
        file.write('{"step": 3, "by": 1, "loss": NaN}\n{"step": 4, "by"')
    assert steps(dirs, 1) == [(1, 1), (2, 1), (3, 1)]
    assert newest_metrics(dirs, 1) == {"step": 3, "by": 1, "loss": None}  # JSON has no NaN


def test_polling_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dirs = write_rows(tmp_path, [range(1, 20_001)])
    parsed: list[bytes] = []
    honest = journal._row
    monkeypatch.setattr(journal, "_row", lambda line: parsed.append(line) or honest(line))  # type: ignore[func-returns-value]
    assert steps(dirs, 1, after=19_998) == [(19_999, 1), (20_000, 1)]
    assert len(parsed) < 10
