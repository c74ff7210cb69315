"""A corpus made by a Ray Data job is the corpus that one process makes, also on a cluster that the job fills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmos
from llmos.layout import Layout
from llmos.settings import state_dir
from llmos.train.data import prepare
from llmos.train.work import here
from tests.support import nano


@pytest.mark.timeout(400)
def test_a_corpus_made_by_the_cluster_is_the_same(cluster: llmos.Client, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n} of many: {n * n}"}) + "\n" for n in range(2000)))
    data = llmos.Data(path=(str(path),), vocab_size=320, tokenize="ray")
    cpus = int(sum(node["total"]["cpus"] for node in cluster.status()["nodes"]))
    job = cluster.submit(nano("tokenized", cpus, 2).model_copy(update={"data": data})).id
    done = cluster.wait(job, timeout_s=300)
    assert done.phase == "succeeded", list(cluster.logs(job))
    local = prepare(
        data.mixture,
        chats=False,
        vocab_size=data.vocab_size,
        validation_fraction=data.validation_fraction,
        unusable=data.unusable,
        data_dir=tmp_path / "data",
        report=lambda _: None,
        work_for=lambda _: here(lambda _: None),
    )
    theirs = Layout(state_dir()).data / local.digest
    assert {file.name: file.read_bytes() for file in local.directory.iterdir()} == {
        file.name: file.read_bytes() for file in theirs.iterdir()
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_a_task_refuses_is_told_as_it_is(cluster: llmos.Client, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "one"}\n{"text": 2}\n{"text": "three"}\n')
    data = llmos.Data(path=(str(path),), vocab_size=320, tokenize="ray")
    job = cluster.submit(nano("refused", 1, 2, retries=0).model_copy(update={"data": data})).id
    done = cluster.wait(job, timeout_s=300)
    assert done.phase == "failed" and f"{path}, line 2 `text` is a int: expected text" in done.reason
