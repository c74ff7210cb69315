"""Whether a job could ever start: what cannot is better refused when it is submitted than left to wait for ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llmos.control.loop import Sight
from llmos.control.translate import asked
from llmos.core.room import Memo, Room
from llmos.core.tenants import Ledger
from llmos.core.types import Job, Node, NodeKind
from llmos.errors import UsageError
from llmos.spec import Job as JobSpec


def check_possible(spec: JobSpec, sight: Sight) -> None:
    """Raise UsageError with the reason if the job could not start on the cluster in ``sight`` if all of it were free
    and all nodes were there that can be started, or if it asks for more than its tenant may ever hold.

    Nothing is known of a cluster that was not seen yet.
    """
    if not sight.snapshot.nodes:
        return
    job = asked(spec)
    room = Room(_all_nodes(job, sight), Memo())
    fitting = [gang for gang in job.gangs if room.could_hold(gang)]
    if not fitting:
        _refuse(room.why_not(job.gang))
    ledger = Ledger(sight.desired.tenants, room.grid, [job.tenant])
    if why := ledger.refusal(job, room.shape(fitting[0]).total, 0.0):
        _refuse(why)


def _refuse(why: str) -> None:
    hint = "ask for less, or submit it with `--allow-pending` to let it wait until that has changed"
    raise UsageError(f"the job could never start: {why}", hint=hint, param="spec")


def _all_nodes(job: Job, sight: Sight) -> tuple[Node, ...]:
    """The nodes that are there, also those that take no work for now, and those that could be started for ``job``."""
    there = [replace(node, draining=False) for node in sight.snapshot.nodes]
    return (*there, *(node for kind in sight.desired.kinds for node in _more(kind, job, there)))


def _more(kind: NodeKind, job: Job, there: list[Node]) -> Iterator[Node]:
    """Nodes of ``kind`` that could be started: no more than ``job`` has workers."""
    left = kind.most - sum(node.kind == kind.name for node in there)
    for i in range(min(left, max(len(gang.bundles) for gang in job.gangs))):
        yield Node(f"~{kind.name}-{i:06}", kind.total, labels=kind.labels, kind=kind.name)
