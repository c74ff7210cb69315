"""What ranks were doing when no step had ended for too long, and who of them kept the others waiting. PURE.

A rank's stacks are those that ``faulthandler`` writes: of each thread, the innermost call first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmos.errors import DeadlineError

Threads = tuple[tuple[str, ...], ...]
"""The calls of each thread that does something of ours, the innermost first; first the thread that trains."""

_CALL = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)')
_COLLECTIVE = re.compile(r"/torch/distributed/|/llmos/parallel/(world|mesh|data|gradients)\.py")
"""Files whose calls wait for other ranks. NCCL's do not block: their results are waited for, in llmos/parallel."""
_WORKING = re.compile(r'/concurrent/futures/thread\.py", line \d+ in run$')
_INNERMOST = 4
"""Calls that are looked at: a pipeline's schedule, which also computes, is further out than what waits in it."""


@dataclass(frozen=True, slots=True)
class Stacks:
    """Of one rank, on ``host``."""

    host: str
    threads: Threads

    @property
    def waits(self) -> bool:
        """Whether the rank is in a collective: it waits for others."""
        return any(_COLLECTIVE.search(call) for call in self.threads[0][:_INNERMOST]) if self.threads else False

    @property
    def place(self) -> str:
        """The innermost call of the thread that trains that is ours: ``take (feed.py:60)``."""
        calls = [match for call in (self.threads or ((),))[0] if (match := _CALL.search(call))]
        ours = next((call for call in calls if "/llmos/" in call["file"]), calls[0] if calls else None)
        return f"{ours['function']} ({ours['file'].rpartition('/')[2]}:{ours['line']})" if ours else "nowhere"


def parse(text: str) -> Stacks | None:
    """What a rank's file says; None unless it has its stacks. Its first line is ``host thread``."""
    first, _, rest = text.partition("\n")
    host, _, trains = first.partition(" ")
    threads: dict[str, tuple[str, ...]] = {}
    for block in re.split(r"^(?=Thread |Current thread )", rest, flags=re.MULTILINE):
        if found := re.match(r"(?:Current t|T)hread (0x[0-9a-f]+)", block):
            threads[found[1]] = tuple(line.strip() for line in block.splitlines()[1:] if _CALL.search(line))
    if trains not in threads:
        return None
    others = [calls for name, calls in sorted(threads.items()) if name != trains and _is_ours(calls)]
    return Stacks(host, (threads[trains], *others))


def report(after_s: float, ranks: Mapping[int, Stacks | None]) -> DeadlineError:
    """The error that ends the attempt. None: a rank whose process has left nothing, as if it were gone."""
    late = {rank: found for rank, found in ranks.items() if found is None or not found.waits}
    if not late or len(late) == len(ranks):
        which = "all ranks wait for each other" if not late else "no rank is in a collective"
    else:
        which = "; ".join(_late(rank, found) for rank, found in late.items()) + "; the others wait in collectives"
    if len(ranks) == 1:
        which = "; ".join(f"it is in {found.place}" for found in ranks.values() if found)
    hint = "If steps may take so long, raise `watchdog.timeout`."
    return DeadlineError(f"no step has ended for {after_s:.0f} s: {which}\n{_listing(ranks)}", hint=hint)


def _late(rank: int, found: Stacks | None) -> str:
    if found is None:
        return f"rank {rank} has left no stack: its process hangs or is gone"
    return f"rank {rank} on {found.host} is not in a collective but in {found.place}"


def _listing(ranks: Mapping[int, Stacks | None]) -> str:
    """The stacks of every rank; those that are the same once."""
    same: dict[Threads, list[str]] = {}
    for rank, found in ranks.items():
        if found:
            same.setdefault(found.threads, []).append(f"{rank} ({found.host})")
    blocks = []
    for threads, names in same.items():
        waits = ", in a collective" if Stacks("", threads).waits else ""
        for number, calls in enumerate(threads):
            what = f"rank {', '.join(names)}{waits}" if number == 0 else "  another thread of it"
            blocks.append("\n".join([f"{what}:", *(f"    {call}" for call in calls)]))
    return "\n".join(blocks)


def _is_ours(calls: tuple[str, ...]) -> bool:
    """Whether a thread does something for us: one of a pool that has nothing to do, or of a library, does not."""
    if any("/llmos/train/watchdog.py" in call for call in calls):
        return False
    return any("/llmos/" in call or _WORKING.search(call) for call in calls)
