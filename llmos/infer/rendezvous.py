"""How ranks find one another: a store in the engine's process, and the network interface that leads there.

torch itself would listen on every interface of the machine, and choose one by the machine's name.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

_FIND_ONE_ANOTHER = timedelta(minutes=5)
_LONGEST = timedelta(days=1)
"""A collective: whoever hangs is found by the engine's process, which ends all ranks."""


def open_store(host: str) -> dist.TCPStore:
    """Where ranks leave their addresses: at a free port of ``host``, an address of this machine, and nowhere else."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_FIND_ONE_ANOTHER,
        master_listen_fd=listener.detach(),
        use_libuv=True,
    )


def join(store: tuple[str, int], rank: int, ranks: int, device: torch.device, address: str) -> None:
    """Be ``rank`` of the default process group, reached at ``address`` of this machine, unless the environment names
    another interface."""
    if interface := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # without the sign, all that begin so
    backend = "nccl" if device.type == "cuda" else "gloo"
    there = dist.TCPStore(*store, is_master=False, timeout=_FIND_ONE_ANOTHER)
    dist.init_process_group(backend, store=there, rank=rank, world_size=ranks, timeout=_LONGEST)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has ``address``."""
    found = psutil.net_if_addrs().items()
    return next((name for name, ours in found if any(one.address == address for one in ours)), None)
