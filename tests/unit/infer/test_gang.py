"""Ranks that somebody else places: the engine computes with them wherever they are, and none of them outlives it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from llmos.errors import EngineError
from llmos.infer import link
from llmos.infer.launch import Meeting, Process, core_share, launch_here, neighbours
from llmos.infer.local import LocalEngine
from llmos.infer.ranks import RanksRunner
from llmos.infer.rendezvous import interface_of, open_store
from llmos.models import weights
from tests.unit.infer.small import request, running, whole
from tests.unit.infer.steps import BLOCKS, Script, expected, worst
from tests.unit.models.small import make


class Children:
    """A gang of processes of this one, which ``command`` starts; ranks if there is none."""

    host = "127.0.0.1"

    def __init__(self, *command: str) -> None:
        self._command = command
        self.processes: list[subprocess.Popen[bytes]] = []

    def launch(self, meeting: Meeting) -> Sequence[Process]:
        if self._command:
            self.processes = [subprocess.Popen(self._command) for _ in range(meeting.ranks)]
        else:
            self.processes = launch_here(meeting)
        return self.processes


async def test_ranks_of_another_process_than_the_engine_answer_and_end_with_it(model_dir: Path) -> None:
    asked, gang = request(), Children()
    async with running(model_dir) as engine:
        alone = await whole(engine, asked)
    async with running(model_dir, process=True, pp=2, gang=gang) as engine:
        assert await whole(engine, asked) == alone
        parents = {psutil.Process(process.pid).ppid() for process in gang.processes}
        assert parents == {psutil.Process().pid} and engine.stats()["runner"] == "ranks"
        gang.processes[1].kill()
        with pytest.raises(EngineError, match="rank 1 is gone"):
            await asyncio.wait_for(_asked_for_ever(engine), 15)
        assert not engine.stats()["healthy"]
        assert all(process.wait(5) is not None for process in gang.processes)


async def _asked_for_ever(engine: LocalEngine) -> None:
    while True:
        await whole(engine, request())


def test_a_rank_that_ends_before_it_comes_is_found(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "WORDS_S", 0.5)
    gang, began_s = Children(sys.executable, "-c", "raise SystemExit(3)"), time.monotonic()
    with pytest.raises(EngineError, match="rank 0 has ended before the engine was ready"):
        LocalEngine(model_dir, process=True, runner="torch", pp=2, gang=gang)
    assert time.monotonic() - began_s < 30


def test_ranks_of_other_machines_talk_by_the_network_that_leads_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One machine stands for several: it is reached at its outward address, on which its processes listen, alone."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)  # a test that was a rank itself may have left its own
    found = (one for ours in psutil.net_if_addrs().values() for one in ours if one.family == socket.AF_INET)
    host = next((one.address for one in found if not one.address.startswith("127.")), None)
    if host is None:
        pytest.skip("this machine has no address but its own")
    model = make()
    weights.save_model(model, tmp_path)
    before, processes = _listening(psutil.Process()), list[subprocess.Popen[bytes]]()

    def launch(meeting: Meeting) -> Sequence[Process]:
        assert meeting.host == host
        processes.extend(launch_here(meeting))
        return processes

    runner = RanksRunner(tmp_path, BLOCKS, pp=2, runner="torch", host=host, launch=launch)
    try:
        listening = [_listening(psutil.Process(process.pid)) for process in processes]
        assert {address for one in listening for address, _ in one} == {host} and all(listening)
        assert {address for address, _ in _listening(psutil.Process()) - before} == {host}
        logits = []
        for step, _ in (script := Script()).steps():
            runner.start(step)
            logits.append(runner.finish())
        assert worst(logits, expected(model, script)) < 1e-4
    finally:
        runner.close()


def _listening(process: psutil.Process) -> set[tuple[str, int]]:
    found = process.net_connections("inet")
    return {(str(c.laddr.ip), int(c.laddr.port)) for c in found if c.status == psutil.CONN_LISTEN and c.laddr}


def test_the_store_listens_at_its_address_only() -> None:
    store = open_store("127.0.0.1")
    store.set("who", "ours")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port), timeout=5)
    assert interface_of("127.0.0.1") == "lo" and interface_of("192.0.2.1") is None


def test_a_meeting_does_not_show_its_secret() -> None:
    assert "k" * 32 not in repr(Meeting("127.0.0.1", 1, b"k" * 32, 2))


def test_ranks_of_a_machine_share_its_cores() -> None:
    assert neighbours(["a", "a", "b", "a"]) == [(0, 3), (1, 3), (0, 1), (2, 3)]
    assert [core_share([4, 5, 6, 7, 8], index, 2) for index in range(2)] == [[4, 5], [6, 7]]
    assert core_share([0], 1, 2) == [0]
