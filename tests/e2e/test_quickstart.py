"""The road at a reduced size, on a real local cluster: what comes out at its end, not only that something does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import llmos
from tests.support import ROOT, nano, running_cluster

PROMPT = "def fibonacci(n):"
GREEDY = {"model": "nano", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llmos.Client]:
    with running_cluster(tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="module")
def trained(cluster: llmos.Client) -> llmos.JobView:
    return cluster.wait(cluster.submit(nano("nano", workers=2, steps=20)).id, timeout_s=120)


def test_a_job_trains_on_two_workers_and_registers_its_model(cluster: llmos.Client, trained: llmos.JobView) -> None:
    assert (trained.phase, trained.attempts, trained.step) == ("succeeded", 1, 20)
    rows = cluster.metrics(trained.id)
    assert [row.step for row in rows] == list(range(1, 21))
    assert rows[-1].loss < rows[0].loss
    assert cluster.model("nano@1").lineage["job"] == trained.id
    assert any("step 20/20" in line for line in cluster.logs(trained.id))


def test_what_is_served_is_what_was_trained(cluster: llmos.Client, trained: llmos.JobView, tmp_path: Path) -> None:
    cluster.serve(llmos.Service(name="nano", model="nano@1", dtype="float32"))
    cluster.wait_service("nano", timeout_s=60)
    with cluster.openai() as openai:
        for options in ({"temperature": 0}, {"temperature": 0.9, "seed": 7}):
            whole = openai.completions.create(**{**GREEDY, **options})
            stream = openai.completions.create(**{**GREEDY, **options}, stream=True)
            pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]
            assert "".join(pieces) == whole.choices[0].text != ""
        greedy = openai.completions.create(**GREEDY).choices[0].text
        cluster.export_model("nano@1", tmp_path / "nano")
        assert greedy == transformers_greedy(tmp_path / "nano")
        reply = openai.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": "hello"}], max_tokens=5, temperature=0
        )
        assert reply.usage and reply.usage.completion_tokens <= 5
    cluster.remove_service("nano")


def transformers_greedy(directory: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    answer = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def test_the_notebook_walks_the_same_road(cluster: llmos.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_NOTEBOOK_STEPS", "5")
    monkeypatch.setenv("LLMOS_NOTEBOOK_DATA", str(ROOT / "llmos" / "core" / "*.py"))
    notebook = nbformat.read(ROOT / "notebooks" / "01_quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()  # raises what a cell raised
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "notebook-coder-1 · succeeded · step 5/5" in said and "def fibonacci(n):" in said
    assert cluster.model("notebook-coder@1").lineage["job"] == "notebook-coder-1"
    assert cluster.services() == []


@pytest.mark.slow  # two jobs
def test_the_training_notebook_sees_the_same_losses_on_two_meshes(
    cluster: llmos.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_NOTEBOOK_STEPS", "6")
    monkeypatch.setenv("LLMOS_NOTEBOOK_DATA", str(ROOT / "llmos" / "core" / "*.py"))
    notebook = nbformat.read(ROOT / "notebooks" / "02_training.ipynb", as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    first, second = (cluster.metrics(cluster.job(name).id) for name in ("notebook-nano", "notebook-nano-2"))
    assert [row.step for row in first] == [row.step for row in second] == [1, 2, 3, 4, 5, 6]
    assert [row.loss for row in second] == pytest.approx([row.loss for row in first], rel=1e-2)  # bf16 on some CPUs
    assert cluster.job("notebook-nano-2").spec["micro_batch_size"] == 4


def test_no_job_is_lost_or_run_twice_when_control_is_killed(cluster: llmos.Client) -> None:
    jobs = []
    for number in range(20):
        jobs.append(cluster.submit(nano("small", workers=1, steps=2)).id)
        if number % 4 == 3:
            os.kill(cluster.status()["control"]["pid"], signal.SIGKILL)
            time.sleep(0.5)
    ended = [cluster.wait(job, timeout_s=400) for job in jobs]
    assert len(set(jobs)) == 20
    assert [(job.phase, job.attempts) for job in ended] == [("succeeded", 1)] * 20
