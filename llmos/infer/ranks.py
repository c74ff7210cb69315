"""A runner over several processes: tensor parallel × pipeline parallel, on this machine or on several.

The engine's process is none of the ranks: nothing it calls can block in a collective that a lost rank never joins, so
it finds out within SILENCE_S, names the rank, and answers every request. It sends each step to all ranks, one array of
integers over TCP, and receives logits from the last stage; ranks exchange the rest among themselves (rank.py).

Rank p · tp + t is tp rank t of stage p. A step takes as long as its stages together, so as many are in flight as there
are stages, each with sequences of its own.
"""

from __future__ import annotations

import json
import logging
import secrets
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from llmos.errors import EngineError, LlmosError, from_json
from llmos.infer import memory
from llmos.infer.launch import Launch, Meeting, Process, launch_here
from llmos.infer.patience import Patience
from llmos.infer.rendezvous import open_store
from llmos.infer.stage import Part
from llmos.infer.step import Step
from llmos.infer.wire import BEAT, Channel, Kind, State, packed
from llmos.models.config import ModelConfig

START_S, END_S = 120.0, 5.0
"""Until every rank has come, and until it has gone before it is killed."""
SILENCE_S = 10.0
"""A rank that says nothing for so long hangs: it speaks every second. So does one that computes the same longer than
this and than a step may take (:class:`Patience`), and so do all of them when they wait for one another so long."""
_TICK_S, _LAST_WORDS_S = 0.25, 1.0

_log = logging.getLogger(__name__)


class _Flight(NamedTuple):
    """A step that was started: its tokens, those whose logits are wanted, and when (seconds)."""

    tokens: int
    logits: int
    began_s: float


class _Rank:
    """What the engine's process knows of a rank."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.channel: Channel | None = None
        self.heard_s = time.monotonic()
        self.state, self.for_s = State.LOADING, 0.0
        self.ready: dict[str, object] | None = None
        self.logits: deque[bytearray] = deque()
        self.error: LlmosError | None = None
        self.lost_another = self.gone = False

    def listen(self) -> None:
        """Take in one frame."""
        assert self.channel is not None
        try:
            kind, body = self.channel.receive()
        except (EOFError, OSError):  # a TimeoutError too: it stopped within a frame
            self.gone = True
            return
        self.heard_s = time.monotonic()
        if kind is Kind.BEAT:
            state, self.for_s = BEAT.unpack(body)
            self.state = State(state)
        elif kind is Kind.LOGITS:
            self.logits.append(body)
        elif kind is Kind.READY:
            self.ready = json.loads(body)
        else:
            found = json.loads(body)
            self.error, self.lost_another = from_json(found["error"]), found["lost"]

    def take_logits(self, count: int) -> Tensor:
        """Those of the oldest step, for ``count`` tokens and this rank's rows of the vocabulary [count, V]."""
        assert self.ready is not None
        body, rows = self.logits.popleft(), int(str(self.ready["rows"]))
        if not count:
            return torch.empty((0, rows))  # torch makes no tensor of an empty buffer
        return torch.frombuffer(body, dtype=torch.float32).view(count, rows)


class RanksRunner:
    """Computes steps on ``tp`` × ``pp`` ranks: see :class:`llmos.infer.step.Runner`.

    ``blocks`` None: as many as ``memory_bytes`` of all ranks together hold, or a share of what is free here.
    ``threads`` are those of each rank. ``host`` is where ranks of other machines reach this process. ``launch`` may
    give no processes: then somebody else ends them. Raises what a rank raises while it loads, and EngineError when one
    does not come.
    """

    def __init__(
        self,
        directory: str | Path,
        blocks: int | None = None,
        *,
        tp: int = 1,
        pp: int = 1,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        runner: str = "torch",
        threads: int = 1,
        memory_bytes: int | None = None,
        context_length: int | None = None,
        step_tokens: int = 512,
        step_logits: int = 64,
        host: str = "127.0.0.1",
        launch: Launch = launch_here,
    ) -> None:
        config, ranks = ModelConfig.load(directory), tp * pp
        self.vocab_size, self.depth, self._tp = config.vocab_size, pp, tp
        if memory_bytes is None and blocks is None and device == "cpu":
            memory_bytes = int(memory.free_bytes(torch.device("cpu")) * memory.CPU_SHARE)
        each_bytes = None if memory_bytes is None else memory_bytes // ranks
        kind = str(dtype).removeprefix("torch.")
        numbers = (blocks, each_bytes, context_length, step_tokens, step_logits)
        parts = [Part(str(directory), rank, tp, pp, kind, device, runner, threads, *numbers) for rank in range(ranks)]
        self._ranks = [_Rank(number) for number in range(ranks)]
        self._processes: Sequence[Process] = ()
        self._error: LlmosError | None = None
        self._flight: deque[_Flight] = deque()
        self._patience = Patience(SILENCE_S, START_S)
        self._store = open_store(host)
        try:
            self._meet(parts, config, host, launch)
        except BaseException:
            self.close()
            raise
        if device == "cpu":
            torch.set_num_threads(1)  # those of this process await work spinning, on cores that ranks need
        self.blocks = min(int(str(rank.ready["blocks"])) for rank in self._ranks if rank.ready is not None)

    def start(self, step: Step) -> None:
        """See :class:`llmos.infer.step.Runner`."""
        if self._error is not None:
            raise self._error
        body = packed(step)
        for rank in self._ranks:
            assert rank.channel is not None
            try:
                rank.channel.send(Kind.STEP, body)
            except OSError:
                rank.gone = True  # said by finish(), which knows more
        self._flight.append(_Flight(len(step.tokens_N), len(step.logits_at_L), time.monotonic()))

    def finish(self) -> Tensor:
        """See :class:`llmos.infer.step.Runner`."""
        if self._error is not None:
            raise self._error
        last = self._ranks[-self._tp :]
        self._wait(lambda: all(rank.logits for rank in last))
        oldest = self._flight.popleft()
        self._patience.learn(oldest.tokens, time.monotonic() - oldest.began_s)
        parts = [rank.take_logits(oldest.logits) for rank in last]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def watch(self) -> None:
        """See :class:`llmos.infer.step.Watched`. What ranks said meanwhile is heard first: who spoke is there."""
        if self._error is not None:
            raise self._error
        self._listen(0.0)
        self._check(0.0)

    def stats(self) -> dict[str, object]:
        """See :class:`llmos.infer.step.Runner`."""
        ranks = [rank.ready["stats"] for rank in self._ranks if rank.ready is not None]
        return {"runner": "ranks", "tp": self._tp, "pp": self.depth, "ranks": ranks}

    def close(self) -> None:
        """See :class:`llmos.infer.step.Runner`."""
        self._error = self._error or EngineError("the ranks have been closed", hint="Make another engine.")
        for rank in self._ranks:
            if rank.channel is not None and not rank.gone:
                try:
                    rank.channel.send(Kind.END)
                except OSError:
                    rank.gone = True
        until_s = time.monotonic() + END_S
        for process in self._processes:
            try:
                process.wait(max(0.0, until_s - time.monotonic()))
            except Exception:  # each kind of process has its own
                process.kill()
                process.wait()
        for rank in self._ranks:
            if rank.channel is not None:
                rank.channel.close()

    def _meet(self, parts: Sequence[Part], config: ModelConfig, host: str, launch: Launch) -> None:
        with socket.create_server((host, 0), backlog=len(parts)) as server:
            server.settimeout(_TICK_S)
            meeting = Meeting(host, server.getsockname()[1], secrets.token_bytes(32), len(parts))
            self._processes = launch(meeting)
            until_s = time.monotonic() + START_S
            while any(rank.channel is None for rank in self._ranks):
                self._accept(server, meeting)
                self._check_processes()
                if time.monotonic() > until_s:
                    missing = next(rank for rank in self._ranks if rank.channel is None)
                    self._fail(f"rank {missing.number} has not come within {START_S:.0f} s")
        for rank, part in zip(self._ranks, parts, strict=True):
            assert rank.channel is not None
            store = [host, self._store.port]
            told = {"part": part.to_json(), "store": store, "hidden_size": config.hidden_size}
            rank.channel.send_json(Kind.CONFIGURE, told)
        self._wait(lambda: all(rank.ready is not None for rank in self._ranks))

    def _accept(self, server: socket.socket, meeting: Meeting) -> None:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return
        came = Channel.accept(connection, meeting, SILENCE_S)
        if came is None:
            connection.close()
        else:
            number, channel = came
            self._ranks[number].channel, self._ranks[number].heard_s = channel, time.monotonic()

    def _wait(self, until: Callable[[], bool]) -> None:
        """Listen until that is so. Raises EngineError, or what a rank raised, when it will not be."""
        began_s = time.monotonic()
        while not until():
            self._listen(_TICK_S)
            self._check(began_s)

    def _listen(self, timeout_s: float) -> None:
        """Wait so long for somebody to speak; then take in all that is there."""
        while ready := self._speaking(timeout_s):
            for rank in ready:
                rank.listen()
            timeout_s = 0.0

    def _speaking(self, timeout_s: float) -> list[_Rank]:
        there = {rank.channel.fileno(): rank for rank in self._ranks if rank.channel is not None and not rank.gone}
        return [there[number] for number in select.select(list(there), [], [], timeout_s)[0]]

    def _check(self, began_s: float) -> None:
        now_s = time.monotonic()
        if any(rank.error or rank.gone for rank in self._ranks):
            self._explain()
        for rank in self._ranks:
            if now_s - max(rank.heard_s, began_s) > SILENCE_S:
                self._fail(f"rank {rank.number} hangs: it has said nothing for {SILENCE_S:.0f} s")
        if self._flight:
            self._check_progress(self._patience.limit_s(sum(step.tokens for step in self._flight)))

    def _check_progress(self, limit_s: float) -> None:
        busy = [rank for rank in self._ranks if rank.state is State.COMPUTING]
        for rank in busy:
            if rank.for_s > limit_s:
                self._fail(f"rank {rank.number} hangs: it has computed the same for {rank.for_s:.0f} s")
        waiting = [rank for rank in self._ranks if rank.state is State.WAITING]
        if waiting and not busy and (for_s := min(rank.for_s for rank in waiting)) > limit_s:
            self._fail(f"the ranks hang: they have waited for one another for {for_s:.0f} s")

    def _explain(self) -> NoReturn:
        """Something is wrong: hear who else has something to say, for ranks that lose another say so first."""
        until_s = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < until_s and not any(rank.error and not rank.lost_another for rank in self._ranks):
            self._listen(_TICK_S)
        self._check_processes()
        for rank in self._ranks:
            if rank.error is not None and not rank.lost_another:
                self._fail(f"rank {rank.number}: {rank.error.message}", rank.error)
        for rank in self._ranks:
            if rank.gone and rank.error is None:
                self._fail(f"rank {rank.number} is gone: its connection has ended")
        self._fail("; ".join(f"rank {rank.number}: {rank.error.message}" for rank in self._ranks if rank.error))

    def _check_processes(self) -> None:
        """Those that ended and did not say why."""
        for number, process in enumerate(self._processes):
            if (code := process.poll()) is not None and self._ranks[number].error is None:
                self._fail(f"rank {number} is gone: its process has ended with {code}")

    def _fail(self, what: str, cause: LlmosError | None = None) -> NoReturn:
        """Every rank ends. Raises the leaf of ``cause`` if it is the user's to mend."""
        self._error = EngineError(what, hint="Its own output says more. Start the engine again.")
        if cause is not None:
            self._error = type(cause).__new__(type(cause))
            LlmosError.__init__(self._error, what, hint=cause.hint, param=cause.param)
        _log.error("%s", what)
        for process in self._processes:
            process.kill()
        raise self._error
