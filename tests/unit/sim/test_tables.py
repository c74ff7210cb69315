"""What is wrong in a trace is said with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.errors import DataError, NotFoundError
from llmos.sim.tables import Fields, Malformed, Table, read_csv, read_json_lines


def _amount(row: Fields) -> tuple[str, int]:
    return row.text("name"), row.whole("amount", most=10)


def _read(tmp_path: Path, text: str | bytes, **options: bool) -> Table[tuple[str, int]]:
    path = tmp_path / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path, ("name", "amount"), _amount, **options)


def test_columns_come_in_any_order_and_numbers_may_be_written_as_fractions(tmp_path: Path) -> None:
    assert _read(tmp_path, "\ufeffamount,other,name\n3.0,x, a \n\n0,,b\n").rows == (("a", 3), ("b", 0))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("a,many", "amount is 'many': expected a number of at least 0 and at most 10"),
        ("a,-1", "amount is '-1'"),
        ("a,11", "amount is '11'"),
        ("a,nan", "amount is 'nan'"),
        ("a,inf", "amount is 'inf'"),
        ("a,1.5", "amount is 1.5: expected a whole number"),
        ("a,", "amount is ''"),
        ("a", "1 fields: expected 2"),
        ("a,1,2", "3 fields: expected 2"),
    ],
)
def test_a_malformed_row_is_named_by_its_line_and_skipped_only_on_request(tmp_path: Path, row: str, why: str) -> None:
    text = f"name,amount\nx,1\n{row}\ny,2\n"
    with pytest.raises(DataError, match="1 malformed row\n  line 3: ") as error:
        _read(tmp_path, text)
    assert why in str(error.value) and "--skip-bad-rows" in str(error.value)
    table = _read(tmp_path, text, skip_bad_rows=True)
    assert table.rows == (("x", 1), ("y", 2))
    assert [bad.line for bad in table.bad] == [3]


def test_bytes_that_are_no_text_are_a_malformed_row(tmp_path: Path) -> None:
    assert [bad.line for bad in _read(tmp_path, b"name,amount\na,\xff\n", skip_bad_rows=True).bad] == [2]


def test_an_error_shows_the_first_rows_and_counts_the_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 malformed rows") as error:
        _read(tmp_path, "name,amount\n" + "a,x\n" * 12)
    assert "line 11:" in str(error.value) and "line 12:" not in str(error.value)
    assert "and 2 more" in str(error.value)


def test_what_no_row_can_make_good_is_never_skipped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column amount"):
        _read(tmp_path, "name\na\n", skip_bad_rows=True)
    with pytest.raises(NotFoundError, match="No such file"):
        read_csv(tmp_path / "none.csv", (), _amount)
    with pytest.raises(DataError, match="not a CSV file"):
        _read(tmp_path, "name,amount\n" + "x" * 200_000 + ",1\n", skip_bad_rows=True)


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"n": 1}\n\n[1]\n{"n": 2\n{"m": 3}\n')

    def number(value: dict[str, object]) -> object:
        if "n" not in value:
            raise Malformed("no n")
        return value["n"]

    table = read_json_lines(path, number, skip_bad_rows=True)
    assert table.rows == (1,)
    assert [bad.line for bad in table.bad] == [3, 4, 5]
    with pytest.raises(DataError, match="line 3: not a JSON object"):
        read_json_lines(path, number)
