"""Nodes come when jobs wait for them, and go when nothing needs them. Why none comes is told."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

import llmos
from llmos.layout import Layout
from llmos.settings import state_dir
from tests.ray.nodes.runs import NODES, STEPS, Figure, Run, job, kind, nodes, until
from tests.support import LLMOS

pytestmark = pytest.mark.timeout(360)  # nodes that start on a busy machine take their time


def _directories() -> set[Path]:
    """What nodes of this machine have, also those of other clusters."""
    return set(Path(tempfile.gettempdir()).glob("llmos-node-*"))


BEFORE = _directories()


def test_from_one_node_to_four_for_a_gang(gang: Run) -> None:
    assert (gang.view.phase, gang.view.attempts, gang.view.step) == ("succeeded", 1, STEPS), gang.view.reason
    (start,) = gang.starts
    assert start.count(",") == NODES - 1, start  # a worker on each


@pytest.mark.slow
def test_nodes_that_nothing_needs_go(cluster: llmos.Client, gang: Run, figure: Figure) -> None:
    until(lambda: kind(cluster)["wanted"] == 0)
    figure("nothing needs them to one node", until(lambda: nodes(cluster) == 1, timeout_s=60))
    until(lambda: _directories() <= BEFORE)  # a node that has left the cluster still ends its processes


@pytest.mark.slow
def test_why_no_node_starts_is_told_and_tried_again_after_a_pause(cluster: llmos.Client, figure: Figure) -> None:
    until(lambda: nodes(cluster) == 1)
    directory = Layout(state_dir(None)).local_nodes
    aside = directory.rename(directory.with_name("aside"))  # the first words of a node would go there: none can start
    id = cluster.submit(job("stranded", 2)).id
    until(lambda: kind(cluster)["trouble"])
    assert str(directory) in kind(cluster)["trouble"] and kind(cluster)["retry_s"] > 0
    until(lambda: "no node of kind local for" in cluster.job(id).reason, timeout_s=5)
    shown = subprocess.run([LLMOS, "status"], capture_output=True, text=True, check=True).stdout
    assert "TROUBLE" in shown and "No such file or directory" in shown and "next try in" in shown
    assert nodes(cluster) == 1
    aside.rename(directory)
    figure("a directory that is back to a second node", until(lambda: nodes(cluster) == 2))
    until(lambda: kind(cluster)["trouble"] == "", timeout_s=10)
    cluster.cancel(id)
