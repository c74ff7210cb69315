"""What each worker process of an attempt does: join the others, then train, and say in the log what went wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from datetime import timedelta

import torch
import torch.distributed as dist

from llmos.errors import LlmosError, TrainingError, from_json
from llmos.parallel.world import World
from llmos.redact import Redactor
from llmos.train import cause
from llmos.train.loop import train
from llmos.train.own_loop import call
from llmos.train.rank_log import rank_log
from llmos.train.run import AnyRun, Run

log = logging.getLogger("llmos.train")


def join(backend: str, host: str, port: int, rank: int, size: int, timeout_s: float, listener: int | None) -> None:
    """Join the process group of ``size`` ranks whose rank 0 listens at ``host:port``, on file descriptor ``listener``.

    torch's TCPStore listens on every interface unless it is handed a socket; gloo chooses by host name unless it is
    told which interface.
    """
    if host == "127.0.0.1":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(
        host, port, size, is_master=rank == 0, timeout=timeout, master_listen_fd=listener, use_libuv=True
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    if backend == "nccl":
        torch.cuda.set_device(World.current().device)


def leave() -> None:
    """Give up the process group: a rank of it is gone."""
    dist.destroy_process_group()


def say_waiting(run: AnyRun, secrets: Collection[str]) -> None:
    """Say in the attempt's log that this process waits for the replacement of a rank that is gone."""
    with rank_log(run.attempt.log, int(os.environ["RANK"]), secrets):
        log.warning("another rank is gone: waiting for its replacement")


def run_rank(run: AnyRun, secrets: Collection[str]) -> None:
    """Train ``run``, or call its function. What this rank writes goes to the attempt's log, with ``secrets`` blacked
    out.

    So they are in what it raises, which Ray writes into logs of its own: leaves of LlmosError, nothing else.
    """
    world = World.current()
    with rank_log(run.attempt.log, world.rank, secrets), cause.shared(run.attempt.cause):
        try:
            train(run, world) if isinstance(run, Run) else call(run, world)
        except LlmosError as error:
            log.error("error: %s", error)
            raise _redacted(error, secrets) from None
        except Exception as error:
            log.exception("this rank failed")
            what = f"rank {world.rank} failed: {type(error).__name__}: {error}"
            raise _redacted(TrainingError(what, hint="see the job's log"), secrets) from None


def _redacted(error: LlmosError, secrets: Collection[str]) -> LlmosError:
    redact = Redactor(secrets).redact
    return from_json(error.to_json() | {"message": redact(error.message), "hint": redact(error.hint)})
