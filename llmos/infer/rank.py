"""A rank: a process that computes its part of a model for an engine in another. ``python -m llmos.infer.rank``.

It is told where to meet by the first line of its input (JSON), and ends when the engine's process does. Ranks talk to
one another by torch.distributed: partial sums within a tp group, hidden states along the stages.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from llmos.cores import keep_to
from llmos.errors import EngineError, LlmosError, WorkerLost
from llmos.infer.launch import Meeting
from llmos.infer.rendezvous import join
from llmos.infer.shared_sum import agree
from llmos.infer.stage import Part, Stage, make_stage
from llmos.infer.torch_runner import Sum
from llmos.infer.wire import BEAT, Channel, Kind, State, unpacked
from llmos.parallel.world import others_alive

BEAT_S = 1.0


class Pulse:
    """What this rank is doing, said every BEAT_S by a thread; it ends the process when nobody hears it."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._state, self._since_s = channel, State.LOADING, time.monotonic()
        threading.Thread(target=self._beat, name="llmos-pulse", daemon=True).start()

    def at(self, state: State) -> None:
        """From now on, until the next call."""
        self._state, self._since_s = state, time.monotonic()

    def _beat(self) -> None:
        while True:
            try:
                self._channel.send(Kind.BEAT, BEAT.pack(self._state, time.monotonic() - self._since_s))
            except OSError:
                os._exit(1)
            time.sleep(BEAT_S)


class Rank:
    """The loop: a step comes, hidden states come from the stage before, and go to the next, or logits to the engine."""

    def __init__(self, part: Part, stage: Stage, channel: Channel, pulse: Pulse, device: torch.device) -> None:
        self._part, self._stage, self._channel, self._pulse = part, stage, channel, pulse
        self._device, self._sent = device, list[tuple[dist.Work, Tensor]]()
        groups = [dist.new_group([stage * part.tp + t for t in range(part.tp)]) for stage in range(part.pp)]
        self._sum: Sum = partial(dist.all_reduce, group=groups[part.stage])
        if device.type == "cpu" and part.tp > 1:
            store = dist.distributed_c10d._get_default_store()
            self._sum = agree(store, f"stage {part.stage}", part.tp_rank, part.tp) or self._sum

    def serve(self, hidden_size: int) -> None:
        """Until the engine says that it is over. Raises EOFError when it is gone, WorkerLost for another rank."""
        while True:
            self._pulse.at(State.IDLE)
            kind, body = self._channel.receive()
            if kind is Kind.END:
                return
            step, hidden_ND = unpacked(body), None
            if self._part.stage > 0:
                hidden_ND = torch.empty((len(step.tokens_N), hidden_size), device=self._device)
                self._receive(hidden_ND)
            self._pulse.at(State.COMPUTING)
            out = self._stage.run(step, hidden_ND, self._total if self._part.tp > 1 else None)
            if self._part.stage + 1 < self._part.pp:
                self._pass_on(out)
            else:
                self._channel.send(Kind.LOGITS, _bytes(out))

    def _total(self, part: Tensor) -> None:
        self._pulse.at(State.WAITING)
        with others_alive():
            self._sum(part)
        self._pulse.at(State.COMPUTING)

    def _receive(self, hidden_ND: Tensor) -> None:
        self._pulse.at(State.WAITING)
        with others_alive():
            dist.recv(hidden_ND, self._part.rank - self._part.tp)

    def _pass_on(self, hidden_ND: Tensor) -> None:
        """Without waiting until the next stage takes it: it may have steps before this one."""
        self._pulse.at(State.WAITING)
        with others_alive():
            while len(self._sent) >= self._part.pp:
                self._sent.pop(0)[0].wait()
            hidden_ND = hidden_ND.contiguous()
            work = dist.isend(hidden_ND, self._part.rank + self._part.tp)
            assert work is not None
            self._sent.append((work, hidden_ND))


def _bytes(logits_LV: Tensor) -> bytes | memoryview:
    """Of ``logits_LV``, which has no rows in the middle of a prompt: a view without elements cannot be cast."""
    return memoryview(logits_LV.contiguous().cpu().numpy().data).cast("B") if len(logits_LV) else b""


def serve(meeting: Meeting, number: int) -> None:
    """Be rank ``number`` until the engine's process ends it. Errors go there."""
    channel = Channel.join(meeting, number)
    pulse = Pulse(channel)
    try:
        told = channel.receive_json()
        part = Part(**told["part"])
        torch.set_num_threads(part.threads)
        device = _device(part.device, number)
        stage = make_stage(part, device)
        host, port = told["store"]
        join((host, port), part.rank, part.tp * part.pp, device, channel.address)
        channel.send_json(Kind.READY, {"blocks": stage.blocks, "rows": stage.vocab_size, "stats": stage.stats()})
        Rank(part, stage, channel, pulse, device).serve(told["hidden_size"])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the engine's process is gone: nobody is left to tell
    except Exception as error:
        if not isinstance(error, LlmosError):
            error = EngineError(f"{type(error).__name__}: {error}", hint="The rank's own output has the traceback.")
        channel.send_json(Kind.ERROR, {"lost": isinstance(error, WorkerLost), "error": error.to_json()})
        raise


def _device(kind: str, number: int) -> torch.device:
    """The card of this rank, where there are cards: an actor may see its own only."""
    if torch.device(kind).type == "cpu":
        return torch.device("cpu")
    device = torch.device(kind, number % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def main() -> None:
    """The first line of the input says where to meet."""
    faulthandler.enable()
    told = json.loads(sys.stdin.readline())
    number = int(told.pop("number"))
    keep_to(told.pop("cores"))
    serve(Meeting(**{**told, "secret": bytes.fromhex(told["secret"])}), number)


if __name__ == "__main__":
    main()
    os._exit(0)  # without waiting for other ranks at the end
