"""Ranks as processes of this machine, without Ray: this process is rank 0, the others are its children.

They meet over a file and talk over the loopback interface only; where each can have a GPU of its own, over NCCL.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from llmos.errors import LlmosError, UsageError, WorkerLost
from llmos.files import read_json
from llmos.parallel.world import World
from llmos.train import cause
from llmos.train.limits import collective_timeout_s
from llmos.train.loop import train
from llmos.train.rank import run_rank
from llmos.train.run import AnyRun, Result, Run

CHILD_END_TIMEOUT_S = 10.0

log = logging.getLogger("llmos.train")


def train_on_ranks(run: Run, ranks: int) -> Result:
    """:func:`train` with ``ranks`` processes, this one included. Creates the attempt's directory.

    Ctrl-C asks all of them to save and stop; a second one raises KeyboardInterrupt. However this ends, the children are
    gone. Raises leaves of LlmosError; call it from the main thread.
    """
    run.attempt.root.mkdir(parents=True)
    with ExitStack() as stack:
        stack.enter_context(_stop_on_interrupt(run.attempt.stop))
        if ranks > 1:
            stack.enter_context(_group(run, ranks, None))
        stack.enter_context(cause.shared(run.attempt.cause))
        return train(run, World.current())


def run_attempt(run: AnyRun, ranks: int, secrets: Mapping[str, str]) -> dict[str, Any]:
    """The attempt with ``ranks`` processes, this one included, as ``worker.fit`` runs it on a cluster.

    What they write goes to its log, with ``secrets`` (by variable) blacked out. Returns its outcome. Raises leaves of
    LlmosError. Stopping is the business of whoever watches, by ``run.attempt.stop``.
    """
    if run.job.resources.gpus and (there := torch.cuda.device_count()) < ranks:
        wanted = f"the job wants a GPU for each of its {ranks} ranks: this machine has {there}"
        raise UsageError(wanted, hint="Use a smaller `mesh`, or `resources: {gpus: 0}`.", param="resources.gpus")
    os.environ.update({**run.job.env, **secrets})
    with ExitStack() as stack:
        if ranks > 1:
            stack.enter_context(_group(run, ranks, tuple(secrets.values())))
        run_rank(run, tuple(secrets.values()))
    return dict(read_json(run.attempt.outcome))


@contextmanager
def _stop_on_interrupt(stop: Path) -> Iterator[None]:
    def ask(number: int, frame: FrameType | None) -> None:
        if stop.exists():
            raise KeyboardInterrupt
        stop.touch()
        log.warning("stopping after this step; Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def processes() -> ForkServerContext:
    """How ranks are started: forked from a process that has loaded torch, and has no threads in mid-work to inherit.

    It starts with the first rank and ends with this process. What has changed in ``os.environ`` since is to be told.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _group(run: AnyRun, ranks: int, secrets: Collection[str] | None) -> Iterator[None]:
    """Start the other ranks and join them; end them in the end. With ``secrets`` they write to the attempt's log."""
    context = processes()
    with tempfile.TemporaryDirectory(prefix="llmos-") as directory:
        told = run, directory, ranks, secrets, dict(os.environ)
        children = [context.Process(target=_child, args=(*told, rank), daemon=True) for rank in range(1, ranks)]
        for child in children:
            child.start()
        try:
            join(directory, 0, ranks, collective_timeout_s(run.job.watchdog.timeout))
            yield
            for child in children:
                child.join(CHILD_END_TIMEOUT_S)
        except WorkerLost as error:
            raise _killed(children) or error from error
        finally:
            _end(children)
            if dist.is_initialized():
                dist.destroy_process_group()


def _killed(children: Sequence[BaseProcess]) -> WorkerLost | None:
    """Which of the ranks from 1 on was killed, if one was: it could leave no word."""
    for rank, child in enumerate(children, start=1):
        child.join(1)
        if child.exitcode == -signal.SIGKILL:
            what = f"another rank is gone: rank {rank} was killed (signal 9)"
            hint = "A machine short of memory does so: use a smaller micro_batch_size or activation_checkpointing."
            return WorkerLost(what, hint=hint)
    return None


def _end(children: Sequence[BaseProcess]) -> None:
    """End the children that are still there: politely first."""
    for child in children:
        child.terminate()
    for child in children:
        child.join(CHILD_END_TIMEOUT_S)
        if child.is_alive():
            child.kill()
            child.join()


def join(directory: str, rank: int, ranks: int, timeout_s: float) -> None:
    """Become rank ``rank`` of ``ranks`` processes of this machine that share ``directory``, an empty one.

    A collective may take ``timeout_s``.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    backend = "nccl" if torch.cuda.device_count() >= ranks else "gloo"
    store, timeout = dist.FileStore(f"{directory}/store", ranks), timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    if backend == "nccl":
        os.environ["LOCAL_RANK"] = str(rank)
        torch.cuda.set_device(World.current().device)


def _child(
    run: Run, directory: str, ranks: int, secrets: Collection[str] | None, environment: Mapping[str, str], rank: int
) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; rank 0 decides what it means
    logging.basicConfig(level=logging.ERROR, format=f"[rank {rank}] %(message)s")
    threading.Thread(target=_end_with_first, daemon=True).start()
    join(directory, rank, ranks, collective_timeout_s(run.job.watchdog.timeout))
    try:
        if secrets is None:
            assert isinstance(run, Run)
            with cause.shared(run.attempt.cause):
                train(run, World.current())
        else:
            run_rank(run, secrets)
    except LlmosError as error:  # rank 0 says it to the user, unless it is this rank's own
        log.debug("%s", error)
        raise SystemExit(1) from error
    finally:
        dist.destroy_process_group()


def _end_with_first() -> None:
    """No rank outlives rank 0, however that ends: waiting for it may take as long as a collective may take."""
    first = multiprocessing.parent_process()
    assert first is not None
    first.join()
    os._exit(1)
