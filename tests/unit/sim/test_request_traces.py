"""Requests are read from both formats, and tiled to days."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmos.errors import DataError
from llmos.sim.request_traces import DAY_S, Request, read_requests, tiled


def test_azure_and_mooncake(tmp_path: Path) -> None:
    azure = tmp_path / "azure.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.6805900,374,44\n"
    )
    first, second = read_requests(azure).rows
    assert first == Request(0.0, 374, 44)
    assert second.at_s == pytest.approx(4.314579, abs=1e-5)
    mooncake = tmp_path / "mooncake.jsonl"
    mooncake.write_text('{"timestamp": 500, "input_length": 9, "output_length": 6, "hash_ids": [1]}\n')
    assert read_requests(mooncake).rows == (Request(0.0, 9, 6),)


@pytest.mark.parametrize("row", ["yesterday,1,1", "2023-11-16 18:15:46,-1,1", "2023-11-16 18:15:46,1,", ",1,1"])
def test_a_malformed_request_of_azure(tmp_path: Path, row: str) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{row}\n")
    with pytest.raises(DataError, match="line 2: "):
        read_requests(path)
    assert read_requests(path, skip_bad_rows=True).rows == ()


@pytest.mark.parametrize("row", ['{"timestamp": 1}', '{"timestamp": "1", "input_length": 1, "output_length": 1}'])
def test_a_malformed_request_of_mooncake(tmp_path: Path, row: str) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(f"{row}\n")
    with pytest.raises(DataError, match="line 1: "):
        read_requests(path)


def test_a_day_has_a_noon() -> None:
    hour = [Request(float(second), 10, 5) for second in range(3601)]
    days = tiled(hour, 2 * DAY_S, 0.8, np.random.default_rng(0))
    times = np.array([request.at_s for request in days])
    assert (np.diff(times) >= 0).all() and times[-1] < 2 * DAY_S
    by_hour = np.histogram(times % DAY_S, bins=24, range=(0, DAY_S))[0] / 2
    assert by_hour[12] == pytest.approx(3600, rel=0.05)
    assert by_hour[0] == pytest.approx(0.2 * 3600, rel=0.15)
