"""Who starts now, and who ends so that others can.

The queue is gone through until nothing changes any more: with each start the order of the tenants changes, with each
STOP what is about to be free. So what is planned is what would be planned again once it has been done.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, takewhile

from llmos.core import reasons, resize
from llmos.core.backfill import Horizon
from llmos.core.free import Columns
from llmos.core.gather import gathered
from llmos.core.goodput import best_first
from llmos.core.lifecycle import record
from llmos.core.lines import Queue as Queue
from llmos.core.preempt import preempted
from llmos.core.queues import Entry, in_turn
from llmos.core.reclaim import reclaimed
from llmos.core.room import Claim, Room
from llmos.core.running import Running, left_high_s, left_s
from llmos.core.tenants import Ledger
from llmos.core.types import Action, Attempt, AttemptPhase, Gang, Job, Order, Verb

REFUSED = 1000
"""When so many jobs of a tenant were held back by its limits, its others are not looked at."""


class Admission:
    """Hands out ``room``. ``claim`` goes before all jobs; nothing starts while there is one.

    Afterwards ``placed`` are the jobs that start, in order, as they run then, ``blocked`` are those that wait for room,
    in order, ``impossible`` those that no room could be made for, ``stops`` are the STOPs that make room, and
    ``running`` is what runs then; :meth:`explained` says why others do not start, ``promised`` when reservations begin.
    """

    def __init__(
        self,
        queue: Queue,
        room: Room,
        ledger: Ledger,
        running: Sequence[Running],
        claim: Claim | None,
        now: float,
    ) -> None:
        self.placed: dict[str, Running] = {}
        self.blocked: list[Job] = []
        self.impossible: list[Job] = []
        self.stops: list[Action] = []
        self.running = list(running)
        self._yielded: dict[str, str] = {}
        self._asked_again: set[str] = set()
        self.first = claim
        self._claim = claim
        self._queue = queue
        self._room = room
        self._ledger = ledger
        self._now = now

    def run(self, reservations: int, tried: int) -> None:
        """Decide. ``reservations`` is how many blocked jobs get one, ``tried`` how many are looked at."""
        while self._pass(reservations, tried) or self._make_room() or self._ask_again():
            pass

    @property
    def promised(self) -> Mapping[str, float]:
        """When the reservations begin, by the id of their jobs."""
        return self._horizon.promised

    def widen(self) -> None:
        """Let what starts have more than its fewest workers, where there is room. To be asked when nobody waits."""
        for id, one in self.placed.items():
            if one.job.larger:
                one.held.give(self._room.free)
                self._room.lending.give(one)
                self.placed[id] = one = self._widened(one)
                one.held.take(self._room.free)
                self._room.lending.take(one)

    def _pass(self, reservations: int, tried: int) -> bool:
        """Go through the queue once. Whether something started that makes it worth going through it again."""
        room, before = self._room, len(self.placed)
        out = self.placed.keys() | self._yielded.keys()
        kept = 0 if self._claim else reservations
        together = self._queue.order is Order.SHORTEST
        self._horizon = Horizon(room.free, room.unserved, self.running, self._now, kept, together)
        self.blocked, self.impossible, self._told = [], [], dict(self._yielded)
        self.first = self._claim
        self._overtaken = self._inexact = False
        self._refusals: Counter[str] = Counter()
        room.lending.next_pass()
        lines = self._queue.by_tenant(out)
        if self._ledger.limits:
            lines = {tenant: self._open(tenant, line) for tenant, line in lines.items()}
        fresh = in_turn(lines, self._ledger, lambda job: room.shape(job.gang).total)
        again = (job for job in self._queue.reopened if job.id not in out)
        full: set[int] = set()  # the gangs, by identity, for which there is no room, and nothing else to wait for
        for job in chain(again, fresh):
            if id(job.gang) in full and not (job.larger or job.placement):
                self.blocked.append(job)
            elif not self._start(job) and self._block(job) and self._only_room(kept):
                full.add(id(job.gang))
            if len(self.blocked) >= tried:
                break
        held_up = bool(self.blocked or self.impossible or self._told)
        return len(self.placed) > before and held_up and not self._would_repeat(kept, len(lines))

    def _would_repeat(self, kept: int, lines: int) -> bool:
        """Whether the next pass would find what this one has, after which ``lines`` wait, with ``kept`` reservations.

        It would if all that started came before all that wait: then the rest is gone through as it was. It would, too,
        if to those that wait nothing matters but what is free: there is only less of it, and of equal bundles it can be
        told exactly whether they fit.
        """
        if lines > 1:
            return False  # whose turn it is has changed
        return not self._overtaken or (self._only_room(kept) and not self._inexact)

    def _only_room(self, kept: int) -> bool:
        """Whether jobs wait for nothing but room, of which there only comes to be less: with ``kept`` reservations."""
        return not (kept or self._claim or self._ledger.limits or self._room.lending.lends)

    def _open(self, tenant: str, line: Iterator[Entry]) -> Iterator[Entry]:
        """``line`` until so many of its jobs were refused that the others would hardly fare better."""
        return takewhile(lambda _: self._refusals[tenant] < REFUSED, line)

    def _start(self, job: Job) -> bool:
        """Start ``job``, if it may and there is room."""
        if self._claim:
            return False
        until = self._now + left_high_s(job)
        for gang in job.gangs:
            shape = self._room.shape(gang)
            self._inexact |= not shape.exact
            columns = self._recorded(job, gang, until) if job.placement else None
            if columns is None:
                columns = self._horizon.find(shape, until, self._room.lending.within(job))
            if columns is not None and not self._refused(job, gang):
                self._seat(job, gang, columns, until)
                return True
        return False

    def _recorded(self, job: Job, gang: Gang, until: float) -> Columns | None:
        """The nodes that ``job`` was given before, if that was recorded and they are possible."""
        if len(job.placement) != len(gang.bundles):
            return None
        columns = self._room.grid.locate(job.placement)
        fits = self._room.shape(gang).fits(columns, self._horizon.usable(until))
        return columns if fits and self._room.lending.bears(job, columns) else None

    def _refused(self, job: Job, gang: Gang) -> str:
        """Why the tenant of ``job`` may not have it run as ``gang``, or the empty string."""
        if job.attempt or not self._ledger.limits:
            return ""  # it was let in when the attempt was recorded
        shape = self._room.shape(gang)
        return self._ledger.refusal(job, shape.total, shape.gpus * promised_s(job, left_s(job)))

    def _seat(self, job: Job, gang: Gang, columns: Columns, until: float) -> None:
        """Note that ``job`` starts: it runs from now on."""
        shape = self._room.shape(gang)
        one = self._begun(job, gang, columns)
        self.placed[job.id] = one
        self._overtaken |= bool(self.blocked or self.impossible or self._told)
        self.running.append(one)
        self._room.lending.take(one)
        self._ledger.hold(job.tenant, shape.total, shape.gpus * promised_s(job, left_s(job)))
        self._horizon.take(one, until)

    def _begun(self, job: Job, gang: Gang, columns: Columns) -> Running:
        nodes = self._room.names(columns)
        number = job.attempt or job.attempts + 1
        attempt = Attempt(job.id, number, AttemptPhase.STARTING, nodes=nodes)
        begun = record(job, Action(Verb.START, job.id, number, nodes), self._now)
        shape = self._room.shape(gang)
        return Running.of(begun, attempt, nodes, shape, shape.held(columns))

    def _widened(self, one: Running) -> Running:
        """``one`` as the largest that its tenant may have and that fits, which it is itself at least.

        A recorded attempt gets the nodes that it had, if it can.
        """
        job, free = one.job, self._room.free
        fixed = self._queue.recorded(job.id)
        if fixed and (columns := self._fixed(job.gang_on(fixed), fixed)) is not None:
            return self._begun(job, job.gang_on(fixed), columns)
        has = self._room.shape(one.gang)
        for gang in best_first(job):
            shape = self._room.shape(gang)
            more = [a - b for a, b in zip(shape.total, has.total, strict=True)]
            gpu_s = (shape.gpus - has.gpus) * promised_s(job, left_s(job))
            if self._ledger.refusal(job, more, gpu_s) or (columns := shape.place(free)) is None:
                continue
            if not self._room.lending.bears(job, columns):
                continue
            self._ledger.hold(job.tenant, more, gpu_s)
            return self._begun(job, gang, columns)
        return one

    def _fixed(self, gang: Gang, nodes: tuple[str, ...]) -> Columns | None:
        columns = self._room.grid.locate(nodes)
        return columns if self._room.shape(gang).fits(columns, self._room.free) else None

    def _block(self, job: Job) -> bool:
        """Note why ``job`` waits, and keep room for it if it is one of the first. Whether it waits for room."""
        room = self._room
        able = next(filter(room.could_hold, job.gangs), None)
        if able is None:
            self.impossible.append(job)
            return False
        if not self._claim and (why := self._refused(job, able)):
            self._refusals[job.tenant] += 1
            self._told[job.id] = why
            return False
        if not self._claim and (why := room.lending.refusal(job, room.free)):
            self._told[job.id] = why
            return False
        self.first = self.first or Claim(job.id, job.gangs, job.priority, job.tenant, self._queue.order)
        self.blocked.append(job)
        self._horizon.wait(job.id, room.shape(able), job.submitted_at)
        return True

    def _make_room(self) -> bool:
        """Ask attempts to end for the first that waits. Whether there are any."""
        if self.first is None:
            return False
        shapes, free = self._room.shape, self._room.free
        if self.first.owned:
            stops = reclaimed(self.running, free, self.first, shapes, self._now)
        else:
            elastic = [one for one in self.running if one.job.larger]
            stops = resize.shrunk(self.running, free, self.first, shapes) if elastic else []
            stops = stops or gathered(self.running, free, self.first, shapes, self._now)
            stops = stops or preempted(self.running, free, self.first, shapes, self._ledger, self._now)
        asked = {action.id for action in stops}
        for id in (unseated := asked & self.placed.keys()):
            self._unseat(id, self.first.who)
        if asked:
            self.running = [one.asked(self._now) if one.job.id in asked else one for one in self.running]
        self.stops += [action for action in stops if action.id not in unseated]
        return bool(stops)

    def _ask_again(self) -> bool:
        """Let those that left their room to others look for another one, each once. Whether there are any."""
        again = self._yielded.keys() - self._asked_again
        self._asked_again |= again
        for id in again:
            del self._yielded[id]
        return bool(again)

    def _unseat(self, id: str, who: str) -> None:
        """Do not start job ``id`` after all: it would have to end at once, for ``who``."""
        one = self.placed.pop(id)
        self.running = [other for other in self.running if other.job.id != id]
        one.held.give(self._room.free)
        self._room.lending.give(one)
        self._ledger.hold(one.job.tenant, one.total, one.gpus * promised_s(one.job, left_s(one.job)), -1)
        self._yielded[id] = f"leaves its room to {who}"

    def explained(self) -> dict[str, str]:
        """Why each job waits that was looked at. To be asked when all is decided: what is free is known only then."""
        told = dict(self._told)
        release = self._horizon.next_release()
        soon = f"; next release {reasons.clock(release[0], self._now)} by {release[1]}" if release else ""
        behind = f"; behind {self._claim.who}" if self._claim else ""
        for job in self.blocked:
            told[job.id] = self._room.why_not(job.gang) + soon + behind
            behind = behind or f"; behind {job.id}"
        for job in self.impossible:
            told[job.id] = self._room.why_not(job.gang)
        return told


def promised_s(job: Job, left: float) -> float:
    """How long ``job`` is counted on to use its GPUs if it likely has ``left`` seconds to run: at least until it has
    left a checkpoint when asked to end."""
    return max(left if math.isfinite(left) else 0.0, job.grace_s)
