"""Tensors that are spread over a mesh, put together again."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from llmos.parallel.mesh import RankMesh
from llmos.parallel.world import others_alive


def gather(tensors: Mapping[str, Tensor], mesh: RankMesh) -> dict[str, Tensor]:
    """Every tensor of all ranks, in full, on rank 0; elsewhere the result means nothing. All ranks must call it.

    ``tensors`` are this rank's, by name; those of other pipeline ranks have other names, or are equal.
    """
    mine = {name: _whole(tensor.detach()) for name, tensor in tensors.items()}
    stage_ranks = mesh.world.size // mesh.pp
    with others_alive():
        if mesh.world.first:
            for rank in range(stage_ranks, mesh.world.size, stage_ranks):
                mine = _receive(rank, mesh.world.device) | mine
        elif mesh.world.rank % stage_ranks == 0:
            _send(mine, 0)
    return mine


def _whole(tensor: Tensor) -> Tensor:
    """Axis by axis, from the outermost on: fsdp has split what tp had left of each tensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    placements = list(tensor.placements)
    for axis in range(len(placements)):
        placements[axis] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


def _send(tensors: Mapping[str, Tensor], rank: int) -> None:
    header = [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()]
    device = next(iter(tensors.values())).device if tensors else torch.device("cpu")
    text = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8).to(device)
    dist.send(torch.tensor([len(text)], device=device), rank)
    dist.send(text, rank)
    for tensor in tensors.values():
        dist.send(tensor.to(device).contiguous(), rank)


def _receive(rank: int, device: torch.device) -> dict[str, Tensor]:
    length = torch.zeros(1, dtype=torch.int64, device=device)
    dist.recv(length, rank)
    text = torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.recv(text, rank)
    found = {}
    for name, kind, shape in json.loads(bytes(text.cpu().numpy())):
        found[name] = torch.empty(shape, dtype=getattr(torch, kind), device=device)
        dist.recv(found[name], rank)
    return found
