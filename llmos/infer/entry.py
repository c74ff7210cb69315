"""What the batching knows of one sequence, and what it decides."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

from llmos.infer.blocks import Table

AGEING_S = 30.0
"""Waiting that makes up for one level of priority: however urgent later ones are, an old entry comes first at last."""


@dataclass(slots=True, eq=False)
class Entry:
    """One sequence: ``tokens`` are its ``prompt`` first ones, then its answer; ``limit`` of them at most.

    The keys and values of the first ``computed`` tokens are in the blocks of ``table``. ``drafts`` are guesses at what
    follows: the caller gives them between two steps, and the batching cuts them to what fits. ``priority``: higher
    first. A tenant of twice the ``weight`` gets twice the tokens. ``arrived`` and ``deadline`` are times in seconds of
    one clock. The rest is the batching's own.
    """

    id: str
    tokens: list[int]
    prompt: int
    _: KW_ONLY
    limit: int
    computed: int = 0
    table: Table | None = None
    drafts: tuple[int, ...] = ()
    tenant: str = ""
    user: str = ""
    weight: float = 1.0
    priority: int = 0
    arrived: float = 0.0
    deadline: float | None = None
    number: int = field(default=0, init=False)
    """Which entry it was, of all that were ever added: the order among equals."""
    served: int = field(default=0, init=False)
    """Tokens its tenant has been charged for."""
    in_flight: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False)
    """Cancelled in flight: it goes when its batch is settled."""

    @property
    def rank(self) -> tuple[float, int]:
        """Who comes first: the smallest. One level of priority is worth AGEING_S of having come earlier."""
        return self.arrived - self.priority * AGEING_S, self.number

    @property
    def decoding(self) -> bool:
        """Only the newest token is left to compute."""
        return self.computed == len(self.tokens) - 1 and self.computed > 0


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` tokens of ``entry`` in a batch: those from ``entry.computed`` on, then its drafts."""

    entry: Entry
    count: int

    @property
    def logits(self) -> int:
        """Tokens whose logits are wanted, the last ones: 0 in the middle of a prompt, 1, or 1 + drafts."""
        return max(0, self.entry.computed + self.count - len(self.entry.tokens) + 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """What to compute next. ``preempted`` wait again, without blocks; ``expired`` are past their deadline, and gone."""

    parts: tuple[Part, ...]
    preempted: tuple[Entry, ...] = ()
    expired: tuple[Entry, ...] = ()
