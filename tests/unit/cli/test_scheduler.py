"""What people see of the scheduler: jobs, their stories, why they wait, the queue, drained nodes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from llmos.cli import text
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_jobs import table
from tests.unit.fake_api import FakeApi

GANG = {"text": "8 bundles of 1 GPU in one rack", "bundles": 8, "cpus": 8.0, "gpus": 8.0}
WHY = "needs 8 bundles of 1 GPU in one rack; 6 GPUs free of 8; next release 14:05 by coder-1"


def wide(monkeypatch: pytest.MonkeyPatch, columns: int | float) -> None:
    """As on a terminal of so many columns."""
    monkeypatch.setattr(text, "screen_width", lambda: columns)


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def waiting(api: FakeApi, **fields: Any) -> None:
    now = time.time()
    estimate = {"p50": now + 725, "p90": now + 14_500}
    api.add_job(**{"reason": WHY, "gang": GANG, "place": 3, "estimated_start": estimate, "tenant": "vision", **fields})


def test_jobs_are_listed_newest_first(llmos: Run, api: FakeApi) -> None:
    now = time.time()
    metrics = {"loss": 2.5, "tokens_per_s": 9600.0}
    ended = {"started_at": now - 50, "ended_at": now - 10, "model": "coder@1"}
    api.add_job(phase="succeeded", step=100, metrics=metrics, **ended)
    api.add_job(phase="running", step=50, metrics=metrics)
    waiting(api, name="other", reason="waits for 2 CPUs\x1b[31m\nand more", created_at=now - 7300)
    result = llmos("jobs")
    assert (result.code, result.err) == (0, "")
    third, second, first = table(result.out)
    assert third == {
        **{"ID": "other-3", "PHASE": "queued", "TENANT": "vision", "GANG": "8×1 GPU", "STEP": "0/100", "AGE": "2h 1m"},
        **{"ETA": "12m–4h", "NOTE": "waits for 2 CPUs [31m"},
    }
    assert (second["GANG"], second["ETA"], second["NOTE"]) == ("1×1 CPU", "-", "loss 2.500 · 9,600 tokens/s")
    assert (first["PHASE"], first["NOTE"]) == ("succeeded", "coder@1 in 40s")
    assert [job["id"] for job in json.loads(llmos("jobs", "-o", "json").out)] == ["other-3", "coder-2", "coder-1"]


def test_jobs_of_a_tenant_or_in_a_state(llmos: Run, api: FakeApi) -> None:
    api.add_job(phase="running")
    waiting(api)
    assert [row["ID"] for row in table(llmos("jobs", "--state", "running").out)] == ["coder-1"]
    assert [row["ID"] for row in table(llmos("jobs", "-t", "vision").out)] == ["coder-2"]
    assert dict(api.requests[-1].url.params) == {"tenant": "vision"}
    assert llmos("jobs", "--tenant", "vision", "--state", "failed").err == "no such jobs\n"


def test_no_jobs_is_said_to_people_and_an_empty_list_to_programs(llmos: Run) -> None:
    assert llmos("jobs").out == ""
    assert llmos("jobs").err == "no jobs yet: submit one with `llmos train FILE`\n"
    assert json.loads(llmos("jobs", "-o", "json").out) == []


def test_a_reason_goes_on_below_its_row_on_a_narrow_terminal_and_below_itself_on_a_wide_one(
    llmos: Run, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(api)
    wide(monkeypatch, 80)
    assert llmos("jobs").out.splitlines() == [
        "ID       PHASE   TENANT  GANG     STEP   AGE    ETA     NOTE",
        "coder-1  queued  vision  8×1 GPU  0/100  1m 0s  12m–4h",
        "    needs 8 bundles of 1 GPU in one rack; 6 GPUs free of 8; next release 14:05",
        "    by coder-1",
    ]
    wide(monkeypatch, 120)
    lines = llmos("jobs").out.splitlines()
    assert lines[1].endswith("12m–4h  needs 8 bundles of 1 GPU in one rack; 6 GPUs free of 8; next")
    assert lines[2].strip() == "release 14:05 by coder-1" and all(len(line) <= 120 for line in lines)


def test_describe_tells_the_story(llmos: Run, api: FakeApi) -> None:
    now = time.time()
    api.add_job(phase="failed", reason="attempt 1 failed\n  rank 0:\n    boom", started_at=now - 90, ended_at=now - 29)
    api.events = [
        {"at": 1_700_000_000.0, "subject": "coder-1", "what": "submitted", "why": ""},
        {"at": 1_700_000_010.0, "subject": "coder-1", "what": "queued", "why": "waits for 2 CPUs\nand patience"},
    ]
    api.outlook = {"nodes": ["n0", "n1"], "after": ["data-1"]}
    result = llmos("describe", "coder")
    assert result.code == 0
    lines = words(result.out)
    assert lines[:3] == ["job coder-1", "name coder", "phase failed attempt 1 failed"]
    assert {"tenant default, priority 0", "asks for 1 bundle of 1 CPU", "runs on n0, n1", "after data-1"} <= {*lines}
    assert "took 1m 1s" in lines and "preset: tiny" in lines
    queued = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_010))
    assert lines[-2:] == [f"{queued} queued waits for 2 CPUs", "and patience"]
    story = json.loads(llmos("describe", "coder", "-o", "json").out)
    assert [event["what"] for event in story["events"]] == ["submitted", "queued"]


def test_describe_says_until_when_a_job_waits_and_what_is_closed_to_it(llmos: Run, api: FakeApi) -> None:
    waiting(api)
    api.outlook |= {"turn": 7, "quarantined": {"n3": "2 jobs failed on it"}, "drained": {"n4": "", "n5": "fan"}}
    lines = words(llmos("describe", "coder").out)
    assert f"phase queued {WHY}" in lines and "asks for 8 bundles of 1 GPU in one rack" in lines
    assert "queue place 3 in the queue of its tenant, turn 7 of all" in lines
    (starts,) = [line for line in lines if line.startswith("starts in")]
    assert starts.startswith("starts in 12m 5s to 4h 1m (") and "nine times of ten)" in starts
    closed = "closed node n3 is in quarantine: 2 jobs failed on it; node n4 is drained; node n5 is drained: fan"
    assert closed in lines
    waiting(api, name="odd", estimated_start=None)
    assert "starts not known: nothing says how long what is before it runs" in words(llmos("describe", "odd").out)


def test_describe_says_what_the_job_measures_of_itself(llmos: Run, api: FakeApi) -> None:
    metrics = {
        **{"tokens_per_s": 9600.0, "mfu": 0.412, "memory_bytes": 4.1e8, "memory_peak_bytes": 5e8, "data_wait_s": 1e-4},
        **{"comm_wait_s": 0.094, "wait_tp_s": 0.09, "sent_tp_bytes": 1.4e6, "wait_other_s": 0.004, "bubble": 0.2},
    }
    directory, files = "/state/jobs/coder-1/attempts/1", ["profile/timeline.svg", "profile/trace-0.json.gz"]
    api.add_job(phase="succeeded", metrics=metrics, directory=directory, files=files)
    lines = words(llmos("describe", "coder").out)
    assert "speed 9,600 tokens/s · MFU 41.2 %" in lines
    assert "memory 410.0 MB a rank, at most 500.0 MB" in lines
    assert "data wait 0.1 ms" in lines
    assert "comm wait 94 ms · tp 90 ms, 1.4 MB; agreement 4 ms" in lines
    assert "bubble 20.0 % of the pipeline's time" in lines
    assert f"directory {directory}" in lines and "files profile/timeline.svg profile/trace-0.json.gz" in lines


def test_explain_lists_what_would_do(llmos: Run, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(api)
    ways = ["if it asked for 6 GPUs instead of 8 (6 bundles)", "if coder-1 ended (expected at 14:05 UTC)"]
    api.explanation = {
        **{"ways": [{"kind": "size", "text": ways[0]}, {"kind": "ended", "text": ways[1]}], "trials": 21, "turn": 3},
        **{"next_release": {"at": 1_700_000_000.0, "job": "coder-1"}, "place": 3, "limited": "only 21 were tried"},
    }
    result = llmos("explain", "coder")
    lines = words(result.out)
    assert lines[0] == f"coder-1 (queued): {WHY}" and lines[-3:] == [
        "it would start",
        *(f"– {way}" for way in ways),
    ]
    assert [line.partition(" ")[0] for line in lines[1:4]] == ["queue", "starts", "next"]
    assert (result.code, result.err) == (0, "plans tried: 21; only 21 were tried\n")
    wide(monkeypatch, 80)
    assert all(len(line) <= 80 for line in llmos("explain", "coder").out.splitlines())
    assert json.loads(llmos("explain", "coder", "-o", "json").out)["trials"] == 21


def test_explain_where_nothing_would_do_or_nothing_waits(llmos: Run, api: FakeApi) -> None:
    waiting(api)
    api.explanation = {"trials": 9, "error": "the GCS is away"}
    result = llmos("explain", "coder")
    assert result.out.endswith("nothing that was tried would let it start now\n")
    assert result.err.startswith("the cluster is not seen at present: the GCS is away\n")
    api.explanation = {"limited": "nothing was tried: the cluster is large"}
    result = llmos("explain", "coder")
    assert "would" not in result.out and "nothing was tried: the cluster is large" in result.err
    api.add_job(phase="running", reason="it does not wait: it runs")
    assert llmos("explain", "coder").out == "coder-2 (running): it does not wait: it runs\n"


def test_the_queue(llmos: Run, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(api)
    waiting(api, tenant="text", priority=2, estimated_start=None, gang=GANG | {"gpus": 0.0, "cpus": 4.0})
    api.drained = {"n8": "fan"}
    result = llmos("queue")
    first, second = table(result.out)
    assert first == {
        **{"TURN": "1", "JOB": "coder-1", "TENANT": "vision", "PRIORITY": "0", "GANG": "8×1 GPU", "ETA": "12m–4h"},
        **{"REASON": WHY},
    }
    assert (second["PRIORITY"], second["ETA"], second["GANG"]) == ("2", "-", "8×0.5 CPU")
    assert result.err == "node n9 is in quarantine: 2 jobs failed on it\nnode n8 is drained: fan\n"
    assert [row["JOB"] for row in table(llmos("queue", "--tenant", "text").out)] == ["coder-2"]
    assert llmos("queue", "-n", "1").err.startswith("1 of 2; more with --limit\n")
    assert json.loads(llmos("queue", "-o", "json").out)["total"] == 2
    wide(monkeypatch, 80)
    assert all(len(line) <= 80 for line in llmos("queue").out.splitlines())


def test_an_empty_queue(llmos: Run) -> None:
    result = llmos("queue")
    assert (result.out, result.err.splitlines()[0]) == ("", "nobody waits")


def test_a_node_is_drained_and_let_go(llmos: Run, api: FakeApi) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000))
    result = llmos("drain", "n0", "--why", "its fan is loud")
    assert words(result.out) == [
        "node n0",
        f"state takes no new work (since {since})",
        "why its fan is loud",
        "jobs coder-1",
        "services chat: replicas stay until their service is removed",
    ]
    assert api.drained == {"n0": "its fan is loud"}
    assert json.loads(llmos("drain", "n0", "-o", "json").out)["drained"]
    assert "state takes work" in words(llmos("drain", "n0", "--undo").out)
    assert api.drained == {}


def test_times_of_which_only_the_size_matters() -> None:
    seconds = (-5, 0, 89, 90, 5399, 5400, 129_599, 129_600)
    assert [text.rough(s) for s in seconds] == ["0s", "0s", "89s", "2m", "90m", "2h", "36h", "2d"]
