"""The benchmark of the scheduler: every row of it is there, and says what it cannot measure."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import admit_row, job_rows, lending_row, openb_row, sched, tick_rows
from benchmarks.rows import Options, Unmeasured

NAMES = ["openb_130", "tick_warm", "tick_cold", "admit_per_s", "jobs_jct", "lending", "eta_p90"]
NODES = "sn,cpu_milli,memory_mib,gpu,model\n" + "".join(f"n{i},96000,393216,8,G2\n" for i in range(4))
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:{i // 60:02}:{i % 60:02}.0000000,1000,200\n" for i in range(600)
)
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n" + "".join(
    f"p{i},{4000 + i * 100},1024,1,{(1000, 470, 810)[i % 3]},\n" for i in range(30)
)


def test_every_row_is_there_and_has_a_function() -> None:
    assert [row.name for row in sched.ROWS] == NAMES
    for row in sched.ROWS:
        module, function = row.run.split(":")
        assert callable(getattr(import_module(module), function)), row.run


def test_openb_compares_all_policies(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces/openb_nodes.csv").write_text(NODES)
    (tmp_path / "traces/openb_pods.csv").write_text(PODS)
    found = openb_row.openb_130(Options(quick=True, data=tmp_path))
    assert found.also["gain"] == pytest.approx(found.value - (found.peer_value or 0))
    assert {"random", "bestfit", "fgd", "llmos"} <= found.also.keys()
    assert "2 seeds" in found.why
    with pytest.raises(Unmeasured, match="openb_nodes.csv"):
        openb_row.openb_130(Options())


def test_lending_compares_one_cluster_with_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces/azure_llm_conv.csv").write_text(AZURE)
    monkeypatch.setattr(lending_row, "QUICK_HOURS", 4.0)
    monkeypatch.setattr(lending_row, "JOBS", 40)
    found = lending_row.lending(Options(quick=True, data=tmp_path))
    fixed = found.also["fixed_replicas"]
    assert found.also["split_50_goodput_h"] == pytest.approx(4 * fixed)  # nobody disturbs those that train apart
    assert found.value == pytest.approx(100 * (found.also["goodput_h"] / (4 * fixed) - 1))
    assert found.also["mean_replicas"] >= 1 and found.also["attained"] > 90
    assert found.also["bound_attained"] > 90 and "who knows what will come: " in found.why
    with pytest.raises(Unmeasured, match="azure_llm_conv.csv"):
        lending_row.lending(Options())


def test_jobs_are_admitted_by_the_real_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admit_row, "QUICK_JOBS", 40)
    found = admit_row.admit_per_s(Options(quick=True))
    assert found.value > 0 and found.also["ticks"] >= 3
    assert found.also["submit_p99_ms"] >= found.also["submit_p50_ms"] > 0


def test_a_plan_is_timed_cold_and_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick_rows, "QUICK", 500)
    cold, warm = tick_rows.tick_cold(Options(quick=True)), tick_rows.tick_warm(Options(quick=True))
    assert cold.value > 0 and warm.value > 0
    assert cold.why.startswith("20 nodes, 2 running, 200 waiting")


def test_jobs_compares_all_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_rows, "QUICK", 400)
    job_rows._replayed.cache_clear()
    found = job_rows.jobs_jct(Options(quick=True))
    assert found.also["bound"] <= found.value
    assert found.peer in ("fifo", "backfill", "srtf") and found.peer_value == found.also[f"{found.peer}_mean"]
    assert found.also["wall_s"] > 0 and found.ratio == pytest.approx(found.value / (found.peer_value or 0))
    job_rows._replayed.cache_clear()
