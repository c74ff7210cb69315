from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.test_jobs import table

NODES = "sn,cpu_milli,memory_mib,gpu,model\na,96000,393216,8,G2\nb,104000,524288,2,T4\n"
PODS = """\
name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
p0,8000,1024,1,1000,,LS,Running,0,,
p1,4000,1024,1,470,,LS,Running,5,,
p2,12000,1024,0,0,,BE,Running,9,,
"""


@pytest.fixture
def openb(tmp_path: Path) -> list[str]:
    """The options that name two small files."""
    for name, text in (("nodes.csv", NODES), ("pods.csv", PODS)):
        (tmp_path / name).write_text(text)
    return ["simulate", "openb", "--nodes", "nodes.csv", "--pods", "pods.csv"]


def test_openb_prints_a_line_for_each_policy(llmos: Run, openb: list[str]) -> None:
    result = llmos(*openb, "--policy", "random", "--policy", "llmos", "--seeds", "3")
    assert result.code == 0, result.err
    assert [row["POLICY"] for row in table(result.out)] == ["random", "llmos"]
    assert "2 nodes, demand 130% of the GPUs, mean of 3 seeds" in result.err


def test_openb_in_json_has_every_seed(llmos: Run, openb: list[str]) -> None:
    found = json.loads(llmos(*openb, "--policy", "fgd", "--seeds", "2", "--json").out)
    assert found == json.loads(llmos(*openb, "--policy", "fgd", "--seeds", "2", "-o", "json").out)
    fgd = found["policies"]["fgd"]
    assert [seed["seed"] for seed in fgd["seeds"]] == [0, 1]
    mean = sum(seed["allocated_pct"] for seed in fgd["seeds"]) / 2
    assert fgd["allocated_pct"] == pytest.approx(mean) and 0 < mean <= 100


def test_openb_skips_a_malformed_row_only_on_request(llmos: Run, openb: list[str], tmp_path: Path) -> None:
    (tmp_path / "pods.csv").write_text(PODS + "p3,1,1,one,1000,,,,,,\n")
    refused = llmos(*openb)
    assert refused.code == 1 and "line 5: num_gpu is 'one'" in refused.err and "--skip-bad-rows" in refused.err
    skipped = llmos(*openb, "--seeds", "1", "--skip-bad-rows", "--json")
    assert skipped.code == 0 and "line 5:" in skipped.err
    assert json.loads(skipped.out)["policies"]["llmos"]["arrived"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "best"], "no policy `best`: expected one of random, bestfit, fgd, llmos"),
        (["--pods", "none.csv"], "cannot read none.csv"),
        (["--pods", "nodes.csv"], "no column name, num_gpu"),
        (["--nodes", "empty.csv"], "empty.csv has no rows"),
    ],
)
def test_openb_says_what_it_was_asked_wrongly(
    llmos: Run, openb: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.csv").write_text("sn,gpu\n")
    result = llmos(*openb, *arguments)
    assert result.code in (1, 2) and message in result.err


JOBS = """\
timestamp,duration,num_gpus,gpu_time,cluster
0,100,8,800,east
10,50,8,400,east
20,30,1,30,west
"""


@pytest.fixture
def trace(tmp_path: Path) -> list[str]:
    """The options that name a small trace and a node of 8 GPUs."""
    (tmp_path / "trace.csv").write_text(JOBS)
    return ["simulate", "jobs", "--trace", "trace.csv", "--gpus", "8", "--per-node", "8"]


def test_jobs_prints_a_line_for_each_policy(llmos: Run, trace: list[str]) -> None:
    result = llmos(*trace, "--policy", "fifo", "--policy", "srtf")
    assert result.code == 0, result.err
    fifo, srtf = table(result.out)
    assert (fifo["POLICY"], srtf["POLICY"]) == ("fifo", "srtf")
    assert fifo["JCT"] == "2m 13s"
    assert "3 jobs on 8 GPUs, 8 a node; trace.csv" in result.err


def test_jobs_in_json_has_the_whole_report(llmos: Run, trace: list[str]) -> None:
    found = json.loads(llmos(*trace, "--policy", "fifo", "--json").out)["policies"]["fifo"]
    assert found["jct_s_mean"] == pytest.approx((100 + 140 + 160) / 3)
    assert found["jobs"] == 3 and found["wall_s"] > 0
    assert {"queued_s_p99", "utilisation_pct", "fragmentation_pct", "fairness", "preemptions"} <= found.keys()


def test_jobs_without_a_trace_makes_one_up(llmos: Run) -> None:
    result = llmos("simulate", "jobs", "--jobs", "50", "--seed", "3", "--policy", "backfill")
    assert result.code == 0 and "50 jobs on 512 GPUs, 8 a node; a trace made up from seed 3" in result.err


def test_jobs_draws_who_held_what(llmos: Run, trace: list[str], tmp_path: Path) -> None:
    result = llmos(*trace, "--policy", "fifo", "--picture", "cluster.svg")
    assert result.code == 0 and "picture: cluster.svg" in result.err
    assert "fifo: 3 jobs on 8 GPUs" in (tmp_path / "cluster.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "4", "--per-node", "4"], "2 jobs are larger than the cluster: job-0 needs 8 GPUs, there are 4"),
        (["--policy", "lifo"], "no policy `lifo`: expected one of fifo, backfill, srtf, llmos, bound"),
        (["--policy", "fifo", "--policy", "srtf", "--picture", "x.svg"], "a picture is of one policy"),
        (["--policy", "fifo", "--picture", "none/x.svg"], "cannot write none/x.svg"),
        (["--trace", "none.csv"], "cannot read none.csv"),
    ],
)
def test_jobs_says_what_it_was_asked_wrongly(llmos: Run, trace: list[str], arguments: list[str], message: str) -> None:
    result = llmos(*trace, *arguments)
    assert result.code in (1, 2) and message in result.err


CLUSTER = """\
nodes: 2
per_node: 8
hours: 0.2
jobs: {count: 2, gpus: 8, fewest: 1, hours: 2}
services:
  - name: chat
    trace: azure.csv
    replicas: {min: 1, max: 4}
    promises: {first_token_s: 1}
    rates: {prompt_tokens_per_s: 8000, step_s: 0.02, most: 8, start_s: 30}
"""


def test_cluster_says_what_jobs_and_services_got(llmos: Run, tmp_path: Path) -> None:
    (tmp_path / "twin.yaml").write_text(CLUSTER)
    rows = "".join(f"2023-11-16 18:15:{second:02d}.5,300,40\n" for second in range(60))
    (tmp_path / "azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    result = llmos("simulate", "cluster", "twin.yaml", "--picture", "twin.svg")
    assert result.code == 0, result.err
    services, jobs = result.out.split("\n\n")
    assert table(services)[0]["SERVICE"] == "chat" and "0 of 2" in jobs
    assert (tmp_path / "twin.svg").read_text().startswith("<svg")
    found = json.loads(llmos("simulate", "cluster", "twin.yaml", "--json").out)
    assert found["services"]["chat"]["attained_pct"] > 50 and found["jobs"]["goodput_pct"] > 50


@pytest.mark.parametrize(
    ("text", "message"),
    [("nodes: [", "twin.yaml has 1 problem"), ("nodes: 0", "nodes is 0"), (None, "cannot read twin.yaml")],
)
def test_cluster_says_what_is_wrong_with_a_spec(llmos: Run, tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "twin.yaml").write_text(text)
    result = llmos("simulate", "cluster", "twin.yaml")
    assert result.code in (1, 2) and message in result.err


SCENARIO = """\
title: two jobs
hours: 1
nodes: [{count: 1, gpus: 4}]
jobs:
  - {name: first, workers: 4, runs: 20m}
  - {name: second, at: 5m, workers: 2, runs: 10m, tenant: default}
"""


def test_plan_says_when_and_why_jobs_wait(llmos: Run, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(SCENARIO)
    result = llmos("simulate", "plan", "two.yaml", "--picture", "two.svg")
    assert result.code == 0, result.err
    first, second = table(result.out)
    assert (first["STARTED"], first["STATE"], first["WAITED"]) == ("00:00", "succeeded", "-")
    assert (second["SUBMITTED"], second["STARTED"]) == ("00:05", first["ENDED"])
    assert "next release 00:20 by first" in second["WHY"]
    assert "two jobs: 1h 0m of virtual time" in result.err and "picture: two.svg" in result.err
    assert (tmp_path / "two.svg").read_text().startswith("<svg")


def test_plan_tells_every_decision(llmos: Run, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(SCENARIO)
    shown = llmos("simulate", "plan", "two.yaml", "--events").out
    assert "attempt 1: 4 bundles of 1 GPU on node-0" in shown and "finished" in shown
    found = json.loads(llmos("simulate", "plan", "two.yaml", "--json").out)
    assert found == json.loads(llmos("simulate", "plan", "two.yaml", "-o", "json").out)
    assert [job["job"] for job in found["jobs"]] == ["first", "second"]
    assert [event["verb"] for event in found["events"]] == ["start", "close", "start", "close"]


def test_plan_says_what_is_wrong_with_a_scenario(llmos: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("nodes: [{count: 1}]\njobs: [{name: a, runs: long}]")
    wrong = llmos("simulate", "plan", "bad.yaml")
    assert wrong.code == 2 and "jobs[0]: runs is long: expected a time" in wrong.err
    (tmp_path / "bad.yaml").write_text("nodes: [")
    assert llmos("simulate", "plan", "bad.yaml").code == 2
    assert "cannot read none.yaml" in llmos("simulate", "plan", "none.yaml").err
    (tmp_path / "two.yaml").write_text(SCENARIO)
    assert "cannot write" in llmos("simulate", "plan", "two.yaml", "--picture", "no/where.svg").err
