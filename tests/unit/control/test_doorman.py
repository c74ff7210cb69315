"""Who holds the front door's port: while there is a front door, that answers; while there is none, 503."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from llmos.control.ray import doorman
from llmos.errors import ClusterError
from tests.support import free_port


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A port, and a path that is too long for a Unix socket."""
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    meeting = directory / "front.sock"
    yield free_port(), meeting
    doorman.dismiss(meeting)
    deadline = time.monotonic() + 20  # it waits no longer than LEAVE_S, which a busy machine may need to start one
    while meeting.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask(port: int) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}/v1/completions", content=b"x" * 100_000, timeout=5)


def answer_once(listener: socket.socket) -> None:
    listener.setblocking(True)
    client, _ = listener.accept()
    with client:
        client.recv(1 << 20)
        client.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def leave(door: doorman.Port) -> None:
    door.listener.close()
    door.close()


def test_the_port_is_never_without_an_answer(place: tuple[int, Path]) -> None:
    port, meeting = place
    door = doorman.ask("127.0.0.1", port, meeting)
    assert meeting.stat().st_mode & 0o777 == 0o600
    for _ in range(2):  # a front door, then none, then the next one
        served = threading.Thread(target=answer_once, args=[door.listener])
        served.start()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 204")
        served.join()
        leave(door)
        found = ask(port)
        assert (found.status_code, found.headers["retry-after"]) == (503, "1")
        assert found.json()["error"]["type"] == "server_error"
        door = doorman.ask("127.0.0.1", port, meeting)
    leave(door)


def test_a_doorman_that_ends_is_replaced_and_the_port_stays(place: tuple[int, Path]) -> None:
    port, meeting = place
    door = doorman.ask("127.0.0.1", port, meeting)
    (first,) = [p for p in psutil.process_iter(["cmdline"]) if str(meeting) in (p.info["cmdline"] or ())]
    assert first.ppid() != os.getpid()  # what ends us does not end it
    first.kill()
    door.wait()
    again = doorman.ask("127.0.0.1", port, meeting, door.listener)
    leave(door)
    leave(again)
    assert ask(port).status_code == 503


def test_one_that_hangs_keeps_no_socket_of_who_asks(place: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorman, "LEAVE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        with doorman._near(place[1]) as path:
            silent.bind(path)
        silent.listen()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ResourceWarning)
            with pytest.raises(TimeoutError):
                doorman._connect(place[1])
            gc.collect()
    assert not told
    place[1].unlink()


def test_a_taken_port_is_told_of(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} of 127.0.0.1: .*in use"):
            doorman.ask("127.0.0.1", port, tmp_path / "front.sock")
    doorman.dismiss(tmp_path / "front.sock")  # nobody: nothing happens


def test_slow_clients_keep_no_front_door_waiting(place: tuple[int, Path]) -> None:
    port, meeting = place
    leave(doorman.ask("127.0.0.1", port, meeting))
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(doorman._CROWD + 5)]

        def trickle() -> None:
            while not over.wait(0.3):
                for one in crowd:
                    with contextlib.suppress(OSError):
                        one.sendall(b"x")

        slow = threading.Thread(target=trickle)
        slow.start()
        began_s = time.monotonic()
        try:
            time.sleep(0.5)
            leave(doorman.ask("127.0.0.1", port, meeting))
            assert time.monotonic() - began_s < doorman._PATIENCE_S
            crowd[0].settimeout(10)
            assert crowd[0].recv(1 << 16).startswith(b"HTTP/1.1 503")
        finally:
            over.set()
            slow.join()


def test_a_doorman_that_ends_while_it_is_asked_is_no_surprise(tmp_path: Path) -> None:
    meeting = tmp_path / "front.sock"
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(meeting))
        unix.listen()
        gone = threading.Thread(target=lambda: unix.accept()[0].close())
        gone.start()
        with pytest.raises(OSError, match="ended when it was asked"):
            doorman._connect(meeting)
        gone.join()
