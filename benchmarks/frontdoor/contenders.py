"""Who is compared: our front door and others, each in processes of its own, before the same engine."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.frontdoor.client import Load, Sample
from benchmarks.frontdoor.mock import ENV_DOOR, PACES_S
from benchmarks.peers import LITELLM, ROOT
from benchmarks.serve_contenders import Server, end_with_parent
from llmos.control.ray.processes import free_ports
from llmos.settings import ENV_KEY

BARE, OURS, SERVE, SERVE_TUNED, PROXY = "bare engine", "llmos", "Ray Serve", "Ray Serve tuned", "LiteLLM"
ECHO = "bare echo"
_MARK = "BENCH_CONTENDER"
_HA_PROXY_PORTS = "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT"


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go: a port on loopback, a path, and the key that is wanted there."""

    port: int
    key: str
    path: str = "/v1/chat/completions"


class Client:
    """The process that makes the load."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.frontdoor.client"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=end_with_parent,
        )

    def run(self, load: Load) -> Sample:
        """Raises RuntimeError when an answer is wrong or missing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(load)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load ended with exit code {self._process.wait()}")
        found = json.loads(line)
        if "error" in found:
            raise RuntimeError(found["error"])
        return Sample(**found)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Contenders:
    """Starts servers and ends them; what one has left behind too. All ask for the same key."""

    def __init__(self) -> None:
        self._key, self._secret = f"sk-{secrets.token_urlsafe(24)}", secrets.token_hex(32)

    @contextmanager
    def engine(self, model_dir: Path | None = None) -> Iterator[Address]:
        """The mock engine, or a real one, without anything before it."""
        command = ["benchmarks.frontdoor.mock", *([str(model_dir)] if model_dir else [])]
        with self._started(command) as address:
            yield address

    @contextmanager
    def ours(self, engine: Address) -> Iterator[Address]:
        """Our front door before ``engine``."""
        with self._started(["benchmarks.frontdoor.ours", f"http://127.0.0.1:{engine.port}"]) as address:
            yield address

    @contextmanager
    def serve(self, tuned: bool) -> Iterator[Address]:
        """Ray Serve with an engine of its own. Never two at once: they are Ray clusters."""
        with tempfile.TemporaryDirectory(prefix="serve-", ignore_cleanup_errors=True) as directory:
            environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": directory}
            environment["RAY_USAGE_STATS_ENABLED"] = "0"
            if tuned:
                environment |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
                environment |= dict(zip(_HA_PROXY_PORTS, map(str, free_ports(2)), strict=True))
                environment |= _ha_proxy_files(directory)
            with self._started(["benchmarks.frontdoor.serve_peer"], environment) as address:
                yield address

    @contextmanager
    def proxy(self, engine: Address) -> Iterator[Address]:
        """LiteLLM's proxy before ``engine``. Raises Missing."""
        with tempfile.TemporaryDirectory(prefix="litellm-") as directory:
            config, (port,) = Path(directory) / "config.yaml", free_ports(1)
            config.write_text(json.dumps(_lite_llm(engine, self._key)))  # JSON is YAML
            program = LITELLM.python.with_name("litellm")
            command: list[str | Path] = [
                program,
                "--config",
                config,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--num_workers",
                "1",
            ]
            environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DO_NOT_TRACK": "1"}
            with self._server(command, environment, port) as address:
                yield address

    @contextmanager
    def _started(self, module: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Address]:
        """A module of ours that serves on the port that is its first argument."""
        name, *arguments = module
        (port,) = free_ports(1)
        command: list[str | Path] = [sys.executable, "-m", name, str(port), *arguments]
        with self._server(command, {"PYTHONPATH": str(ROOT), **(environment or {})}, port) as address:
            yield address

    @contextmanager
    def _server(self, command: Sequence[str | Path], environment: dict[str, str], port: int) -> Iterator[Address]:
        mark = secrets.token_hex(8)
        environment |= {_MARK: mark, ENV_KEY: self._key, ENV_DOOR: self._secret, "OMP_NUM_THREADS": "1"}
        try:
            with Server(command, environment, port, next(iter(PACES_S)), self._key):
                yield Address(port, self._key)
        finally:
            _end_all(mark)


def _ha_proxy_files(directory: str) -> dict[str, str]:
    """Where Ray Serve keeps HAProxy's files: in one place for all clusters of a machine, unless it is told."""
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "METRICS_SOCKET_PATH": "metrics.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
    }
    return {f"RAY_SERVE_HAPROXY_{name}": str(Path(directory) / file) for name, file in files.items()}


def _lite_llm(engine: Address, key: str) -> dict[str, Any]:
    """Its configuration: an OpenAI-compatible engine and a master key; no database, no retries, no logs."""
    base = f"http://127.0.0.1:{engine.port}/v1"
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": base, "api_key": engine.key}}
        for name in PACES_S
    ]
    settings = {"set_verbose": False, "num_retries": 0, "telemetry": False}
    return {"model_list": models, "general_settings": {"master_key": key}, "litellm_settings": settings}


def _end_all(mark: str) -> None:
    """Kill the processes whose environment has ``mark``: children that have outlived the server that started them."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                process.kill()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
