"""Who is compared in serving: our server, vLLM's, and transformers' ``generate``, each in processes of its own.

All get the same files, prompts and lengths. A server answers over HTTP, streaming; transformers, which has
no server that batches, is given whole batches and spared HTTP.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, Self

import httpx

from benchmarks.peers import VLLM
from benchmarks.serve_load import NEW_TOKENS, Endpoint, Load, Prompt, load
from benchmarks.serve_models import Shape
from llmos.control.ray.processes import free_ports

_DRIVER = Path(__file__).resolve().parent / "drivers" / "transformers_generate.py"
_KEY = "benchmark"
_START_S = 300.0
_STOP_S = 20.0
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
CONTEXT = 4096


class Contender(Protocol):
    """One engine at one number of threads, started; ``close`` ends it."""

    def run(self, asked: Sequence[Prompt], concurrency: int, new: int = NEW_TOKENS) -> Load:
        """Answer ``asked``, ``concurrency`` at once, with ``new`` tokens each."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class Server:
    """A server started by ``command``, with ``environment`` beside this one's. Raises RuntimeError with its log."""

    def __init__(
        self, command: Sequence[str | Path], environment: dict[str, str], port: int, model: str, key: str = _KEY
    ) -> None:
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}", model, key)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self._wait()
        self.ready_s = time.perf_counter() - started

    def run(self, asked: Sequence[Prompt], concurrency: int, new: int = NEW_TOKENS) -> Load:
        """See :class:`Contender`."""
        return load(self.endpoint, asked, concurrency, new)

    def close(self) -> None:
        """See :class:`Contender`."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        with suppress(ProcessLookupError):  # what it started and did not end, and itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self) -> None:
        """Until it lists its models."""
        deadline, headers = time.monotonic() + _START_S, {"Authorization": f"Bearer {self.endpoint.key}"}
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                listed = httpx.get(f"{self.endpoint.url}/v1/models", headers=headers)
            except httpx.TransportError:
                time.sleep(0.02)
                continue
            if listed.is_success:
                return
        self.close()
        self._log.seek(0)
        tail = " | ".join(self._log.read().decode(errors="replace").splitlines()[-5:])
        raise RuntimeError(f"the server did not start: {tail}")


class Generate:
    """transformers in a process that generates whole batches."""

    def __init__(self, shape: Shape, threads: int, dtype: str = "bfloat16", device: str = "cpu") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(_DRIVER), str(shape.written()), str(threads), dtype, device]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environment, text=True, preexec_fn=end_with_parent, **pipes)
        self._line()

    def run(self, asked: Sequence[Prompt], concurrency: int, new: int = NEW_TOKENS) -> Load:
        """See :class:`Contender`: batches of ``concurrency``, one after the other."""
        assert self._process.stdin is not None
        wall_s = 0.0
        for start in range(0, len(asked), concurrency):
            batch = {"prompts": list(map(list, asked[start : start + concurrency])), "new": new}
            self._process.stdin.write(json.dumps(batch) + "\n")
            self._process.stdin.flush()
            wall_s += float(self._line()["wall_s"])
        return Load(new * len(asked), wall_s)

    def close(self) -> None:
        """See :class:`Contender`."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"transformers ended with exit code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


def ours(shape: Shape, threads: int, dtype: str = "bfloat16") -> Server:
    """``python -m llmos.infer --serve``, the server without a cluster."""
    port = free_ports(1)[0]
    command: list[str | Path] = [sys.executable, "-m", "llmos.infer", shape.written(), "--serve", "--port", str(port)]
    command += [
        "--name",
        shape.name,
        "--dtype",
        "bfloat16",
        "--threads",
        str(threads),
        "--context-length",
        str(CONTEXT),
    ]
    return Server(command, {"LLMOS_API_KEY": _KEY}, port, shape.name)


def vllm(shape: Shape, threads: int, dtype: str = "bfloat16") -> Server:
    """vLLM's server, without compilation, which takes minutes on a CPU. Raises Missing."""
    port = free_ports(1)[0]
    command: list[str | Path] = [VLLM.python, "-m", "vllm.entrypoints.openai.api_server", "--model", shape.written()]
    command += ["--served-model-name", shape.name, "--dtype", dtype, "--enforce-eager"]
    command += ["--max-model-len", str(CONTEXT), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }
    return Server(command, environment, port, shape.name)


def end_with_parent() -> None:
    """In a child: be ended when this process is gone, however it went (Linux): a killed benchmark leaves none."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def thread_counts() -> list[int]:
    """The numbers of threads to try: powers of two, and all cores."""
    cores = os.cpu_count() or 1
    return sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores})
