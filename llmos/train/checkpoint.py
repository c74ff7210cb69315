"""Checkpoints that are whole or not there, and that prove it.

A checkpoint is a directory ``step-00000400`` in which each rank wrote its share of the tensors (:mod:`shards`), with
``state.json`` and ``manifest.json``, which holds the size and SHA-256 of each other file and of itself. It is written
as a temporary directory, manifest last, synced to disk and renamed: processes that die at any moment leave the earlier
checkpoints as they were. All ranks see the directory: on several machines it lies on storage that they share.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmos.errors import CheckpointError, ConflictError
from llmos.files import sync_directory
from llmos.parallel.world import World
from llmos.spec import CheckpointPolicy
from llmos.train import manifest, shards
from llmos.train.manifest import STATE
from llmos.train.shards import Fingerprint, Piece

NAME = re.compile(r"step-(\d{8,})")
TEMPORARY = ".saving-"

log = logging.getLogger("llmos.train")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Training after ``step`` steps, as one rank holds it.

    ``recipe`` is what determines the run (JSON): a run with another must not continue it. ``model`` and ``optimizer``
    are tensors by name, the latter's ``<parameter>/<what>``: whole ones, or DTensors of which the rank holds a part. A
    rank may lack names that others hold; what several hold is equal. ``state`` holds numbers that are neither (JSON);
    ``validation_loss`` in it, unless None, is what ``keep_best`` goes by. ``generators`` is this rank's own.
    """

    step: int
    recipe: Mapping[str, Any]
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    generators: Mapping[str, Tensor] = field(default_factory=dict)


def save(directory: Path, checkpoint: Checkpoint, policy: CheckpointPolicy, world: World) -> Path:
    """Write ``checkpoint`` under ``directory``, then remove what ``policy`` does not keep. Returns its path.

    Collective: every rank gives its own. Raises CheckpointError on every rank when it cannot be written; the earlier
    ones are then still there.
    """
    return write(directory, checkpoint, share(checkpoint, world), policy, world)


def share(checkpoint: Checkpoint, world: World) -> list[Piece]:
    """What of ``checkpoint`` this rank is to write, not copied. Collective."""
    own = {f"{_generators(world)}{name}": tensor for name, tensor in checkpoint.generators.items()}
    return shards.share(shards.pieces({**checkpoint.model, **checkpoint.optimizer, **own}), world)


def write(
    directory: Path, checkpoint: Checkpoint, parts: Sequence[Piece], policy: CheckpointPolicy, world: World
) -> Path:
    """The second half of :func:`save`: this rank's ``parts``, and what is no tensor of rank 0's ``checkpoint``."""
    final = directory / f"step-{checkpoint.step:08d}"
    with _removed_on_error(Path(world.from_first(partial(_begin, final))), world) as temporary:
        files = world.from_all(partial(_write_shards, final, temporary, parts, world.rank))
        merged = {name: fingerprint for written in files for name, fingerprint in written.items()}
        world.from_first(partial(_publish, final, temporary, checkpoint, merged, policy))
    return final


def find_latest(directory: Path, recipe: Mapping[str, Any], world: World, before: float = math.inf) -> Path | None:
    """The newest checkpoint under ``directory`` that verifies, of a step ``before`` that; None when there was none.
    Collective.

    The ranks share the work. Says loudly when a newer one is damaged. Raises CheckpointError on every rank when all are
    damaged (naming file, expected and found SHA-256), and ConflictError when the newest good one was made by another
    ``recipe`` (naming the fields that differ): no further attempt would do better.
    """
    damage: list[str] = []
    for name in world.from_first(lambda: [path.name for step, path in saved(directory) if step < before]):
        path = directory / str(name)
        if found := _damage(path, world):
            damage.append(found)
            continue
        for message in damage if world.first else ():
            log.error("DAMAGED CHECKPOINT, falling back to the one before it (%s): %s", name, message)
        _check_recipe(path, manifest.read(path)["recipe"], recipe)
        return path
    if damage:
        first = damage[0] + (f" (and {len(damage) - 1} older)" if damage[1:] else "")
        raise CheckpointError(f"no checkpoint verifies: {first}", hint=f"Delete {directory} to start over.")
    return None


def verify(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at ``path``. Raises CheckpointError unless every byte is as it was written."""
    if found := _damage(path, World()):
        raise CheckpointError(f"{path} does not verify: {found}")
    return manifest.read(path)


def load(path: Path, model: Mapping[str, Tensor], world: World) -> Checkpoint:
    """The checkpoint at ``path``, which has been verified, split as this rank's ``model`` is: whatever ranks wrote it.

    Fills the tensors of ``model`` in place; the optimizer's are new ones on the same devices, split as the parameters
    they belong to. The generators are those of this rank if as many ranks wrote it, else none. Collective. Raises
    CheckpointError, before anything is changed, unless all ranks' models together are the one that was saved.
    """
    there, about = shards.describe(path), manifest.read(path)
    _check_model(path, there, model, world)
    optimizer = {
        name: _like(model[parameter], saved_tensor)
        for name, saved_tensor in there.items()
        if (parameter := name.rpartition("/")[0]) in model
    }
    prefix, numbers = _generators(world), state(path)
    own = [name for name in there if name.startswith(prefix) and numbers.get("ranks") == world.size]
    generators = {name: torch.empty_like(there[name], device="cpu") for name in own}
    shards.read(path, {**model, **optimizer, **generators})
    short = {name.removeprefix(prefix): tensor for name, tensor in generators.items()}
    return Checkpoint(about["step"], about["recipe"], model, optimizer, numbers, short)


def state(path: Path) -> dict[str, Any]:
    """The ``state`` of the checkpoint at ``path``."""
    return dict(json.loads((path / STATE).read_bytes()))


def saved(directory: Path) -> list[tuple[int, Path]]:
    """The checkpoints under ``directory``, by name only: steps and paths, newest first."""
    found = directory.iterdir() if directory.is_dir() else ()
    named = [(int(match[1]), path) for path in found if (match := NAME.fullmatch(path.name))]
    return sorted(named, reverse=True)


def kept(losses: Mapping[int, float | None], policy: CheckpointPolicy) -> set[int]:
    """Which of the steps in ``losses`` (with their validation loss, if it was measured) ``policy`` keeps."""
    measured = sorted((loss, -step) for step, loss in losses.items() if loss is not None)
    best = {-step for _, step in measured[: policy.keep_best]}
    return best | set(sorted(losses, reverse=True)[: policy.keep])


def is_parameter(name: str) -> bool:
    """Whether a tensor of a checkpoint is one of the model's: everything else has a ``/`` in its name."""
    return "/" not in name


def _generators(world: World) -> str:
    """What the names of a rank's generators begin with."""
    return f"generators/{world.rank:05d}/"


@contextmanager
def _explained(final: Path) -> Iterator[None]:
    """Whatever the disk has to say becomes a CheckpointError."""
    try:
        yield
    except OSError as error:
        hint = "Make room or repair the storage; the next attempt resumes from the checkpoint before this one."
        raise CheckpointError(f"cannot write checkpoint {final}: {error.strerror or error}", hint=hint) from error


@contextmanager
def _removed_on_error(temporary: Path, world: World) -> Iterator[Path]:
    try:
        yield temporary
    except BaseException:
        if world.first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _begin(final: Path) -> str:
    """Make the temporary directory. What a save that died left behind goes: one attempt of a job writes at a time."""
    with _explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(final.parent)
        return tempfile.mkdtemp(dir=final.parent, prefix=TEMPORARY)


def _write_shards(final: Path, temporary: Path, parts: Sequence[Piece], rank: int) -> dict[str, Fingerprint]:
    """This rank's files. The model's are apart, so that one can be read without the optimizer's."""
    files = {
        f"model-{rank:05d}.safetensors": [part for part in parts if is_parameter(part.name)],
        f"optimizer-{rank:05d}.safetensors": [part for part in parts if not is_parameter(part.name)],
    }
    with _explained(final):
        return {name: shards.write(temporary / name, own) for name, own in files.items() if own}


def _publish(
    final: Path,
    temporary: Path,
    checkpoint: Checkpoint,
    files: Mapping[str, Fingerprint],
    policy: CheckpointPolicy,
) -> None:
    """Write what is left, manifest last; make all of it durable; give it its name; remove what is not kept."""
    with _explained(final):
        manifest.write(temporary, checkpoint.step, checkpoint.recipe, checkpoint.state, files)
        if final.exists():  # a corrupt one that training fell back from, and has now overtaken
            final.rename(Path(tempfile.mkdtemp(dir=final.parent, prefix=TEMPORARY)) / final.name)
        temporary.rename(final)
        sync_directory(final.parent)
        _prune(final.parent, checkpoint.step, policy)


def _prune(directory: Path, newest: int, policy: CheckpointPolicy) -> None:
    """Remove what ``policy`` does not keep of the checkpoints up to step ``newest``; later ones count for nothing."""
    paths = {step: path for step, path in saved(directory) if step <= newest}
    for step in paths.keys() - kept({step: _validation_loss(path) for step, path in paths.items()}, policy):
        shutil.rmtree(paths[step])
    _remove_unfinished(directory)


def _validation_loss(path: Path) -> float | None:
    try:
        loss = state(path).get("validation_loss")
    except (OSError, ValueError, TypeError):  # damaged: not among the best
        return None
    return float(loss) if isinstance(loss, int | float) else None


def _remove_unfinished(directory: Path) -> None:
    for path in directory.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path)


def _damage(path: Path, world: World) -> str | None:
    """What is wrong with the checkpoint at ``path``: each rank looks at its share of the files."""
    return next(filter(None, world.from_all(partial(manifest.problem, path, world))), None)


def _check_model(path: Path, there: Mapping[str, Tensor], model: Mapping[str, Tensor], world: World) -> None:
    """Raises CheckpointError unless all ranks' models together have the names and shapes of what is ``there``."""
    here: dict[str, list[int]] = {}
    for names in world.from_all(lambda: {name: list(tensor.shape) for name, tensor in model.items()}):
        here |= names
    before = {name: list(tensor.shape) for name, tensor in there.items() if is_parameter(name)}
    if wrong := sorted(here.keys() ^ before.keys()):
        some = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if wrong[5:] else "")
        raise CheckpointError(f"checkpoint {path} does not fit the model: only one of them has {some}")
    if other := next((name for name in here if here[name] != before[name]), None):
        shapes = f"{other} was {before[other]}, is now {here[other]}"
        raise CheckpointError(f"checkpoint {path} does not fit the model: {shapes}")


def _like(parameter: Tensor, saved_tensor: Tensor) -> Tensor:
    """Memory for a tensor of ``parameter``'s: split as it is if it has its shape, else whole, like a step count."""
    if saved_tensor.shape == parameter.shape:
        return torch.empty_like(parameter.detach(), dtype=saved_tensor.dtype)
    return torch.empty_like(saved_tensor, device=parameter.device)


def _check_recipe(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    before, now = dict(_leaves(theirs)), dict(_leaves(ours))
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        shown = "; ".join(f"`{name}` was {before.get(name)!r}, is now {now.get(name)!r}" for name in different)
        hint = f"Give the spec it was made with, or delete {path.parent} to start over."
        raise ConflictError(f"checkpoint {path} was made by another spec: {shown}", hint=hint)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and texts of nested mappings, with dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
