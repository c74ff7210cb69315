"""The commands that cluster.yaml runs on its head, run here: the same list, in the shell that Ray runs it in.

Only the environment differs: the home directory, and what lies in front of the PATH. There, `sudo` writes down what it
was asked; `python3 -m venv` makes links to this environment, whose `ray` and `llmos` stay off the usual ports.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray.autoscaler._private.command_runner import _with_interactive

from tests.support import end, free_port, processes, words

CONFIG: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
COMMANDS = [
    command for part in ("setup_commands", "head_setup_commands", "head_start_ray_commands") for command in CONFIG[part]
]
HERE = Path(sys.executable).parent
SUDO = ["apt-get", "DEBIAN_FRONTEND=noninteractive", "mkdir", "mount", "chown", "chmod"]
SMALL = "--node-ip-address 127.0.0.1 --num-cpus 2"
AUTOSCALING = {"cluster_name": "test", "max_workers": 0, "provider": {"type": "readonly"}}


class Head:
    """A home directory on a machine that seems to be the head."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        ports = f"--port {free_port()} --dashboard-port {free_port()} --ray-client-server-port {free_port()}"
        self.script(".profile", f"export PATH={home}/bin:$PATH RAY_TMPDIR={home} RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0")
        self.script("bin/sudo", f'echo "$@" >> {home}/sudo.log')
        self.script("bin/mountpoint", "exit 1")
        self.script("bin/python3", f'mkdir -p "$3" && ln -s {home}/venv "$3/bin"')
        self.script("venv/pip", f'echo "$@" >> {home}/pip.log')
        self.script("venv/python", f'echo "$@" >> {home}/python.log')
        self.script("venv/ray", f'case $1 in start) set -- "$@" {ports} {SMALL};; esac; exec {HERE}/ray "$@"')
        port = f'case $1 in up) set -- "$@" --port {self.port};; esac'
        self.script("venv/llmos", f'{port}; LLMOS_STATE_DIR={home}/s exec {HERE}/llmos "$@"')
        self.file(".bashrc", "")
        self.file(".ray/auth_token", "0123456789abcdef" * 4)
        self.file("ray_bootstrap_config.yaml", yaml.safe_dump(AUTOSCALING))
        self.file("llmos/dist/llmos-1.2.3-py3-none-any.whl", "")

    def file(self, name: str, text: str) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def script(self, name: str, text: str) -> None:
        self.file(name, f"#!/bin/bash\n{text}\n").chmod(0o755)

    def read(self, name: str) -> list[str]:
        return (self.home / name).read_text().splitlines()

    def run(self, command: str) -> None:
        """Run ``command`` as Ray's updater does over SSH."""
        words = shlex.split(" ".join(_with_interactive(command)))
        environment = {"HOME": str(self.home), "USER": "ubuntu", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            words, env=environment, cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def head() -> Iterator[Head]:
    home = Path(tempfile.mkdtemp(prefix="head-"))  # short: Ray's sockets lie below it, and their paths have a limit
    yield Head(home)
    end(home)
    shutil.rmtree(home)


def test_the_head_comes_up_and_a_second_run_changes_nothing(head: Head) -> None:
    for command in COMMANDS:
        head.run(command)
    assert (head.home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert [line.split()[0] for line in head.read("sudo.log")] == SUDO
    assert str(head.home / "llmos/dist/llmos-1.2.3-py3-none-any.whl") in head.read("python.log")[-1].split()
    first = status(head)
    for command in COMMANDS:
        head.run(command)
    assert status(head) == first
    assert len(head.read(".bashrc")) == 1
    head.run("llmos down")  # leaves a cluster that it did not start as it found it
    head.run("ray status")
    left = " ".join(word for process in processes(head.home) for word in words(process))
    assert "raylet" in left and "ControlActor" not in left and "Serve" not in left
    assert not (head.home / "s/cluster.json").exists()
    head.run("llmos up --address auto")
    assert status(head) != first


def status(head: Head) -> int:
    """The control module's pid, asked for through the front door with the key that `llmos up` stored."""
    client = json.loads((head.home / "s/client.json").read_text())
    assert client["url"] == f"http://127.0.0.1:{head.port}"
    answer = httpx.get(f"{client['url']}/api/v1/status", headers={"Authorization": f"Bearer {client['key']}"})
    assert answer.status_code == 200
    return int(answer.json()["control"]["pid"])
