"""Which replica answers a request: the one that has least to do for it, counted in tokens.

The cost of a replica is the part of the prompt that its cache does not hold, a share of what it has to compute for
others already, and a small one of what it was sent lately: it pays to go where the prefix is, unless too many do
(Preble, Srivatsa et al., ICLR 2025). What waits there is bounded: (1 + SPREAD) times the mean and the prompt's own
length (consistent hashing with bounded loads, Mirrokni et al., SODA 2018). Where costs are the same, rendezvous hashing
decides (Thaler and Ravishankar, 1996): a front door that has just started and knows nothing sends prompts where they
were sent before.

Pure: times are given, in seconds of one clock that never goes back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import exp, log

from llmos.front.held import Held
from llmos.infer.prefix import BLOCK_TOKENS

SPREAD = 1.0
"""How far above the mean a load may be, as a part of it."""
QUEUE_SHARE = 0.2
"""What a token that waits at a replica costs, of what one costs that is computed again: that one takes time from all
who come later too, and room in the cache from another prompt."""
LATELY_SHARE = 0.01
"""What a token costs that a replica was sent lately, cached or not: it is read again for every token of the answer."""
NEAR_TOKENS = 64
"""Costs that differ by less are the same."""
SESSION_TOKENS = 1024
"""What staying with its replica is worth to a session: the answers that are cached there, which nobody else sees."""
RECENT_S = 60.0
MAX_DIGESTS = 2**20
"""Of all replicas together."""
MAX_SESSIONS = 2**16


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that takes requests. ``capacity`` is its cache in blocks, ``weight`` how fast it is beside others."""

    id: str
    capacity: int
    weight: float = 1.0


class _Replica:
    """What the router knows of a replica. ``open`` is what it has to compute still, in tokens."""

    __slots__ = ("_at", "_recent", "capacity", "held", "id", "open", "weight")

    def __init__(self, told: Candidate, lately: float, now: float) -> None:
        """``lately`` is what :meth:`recent` shall say now."""
        self.id, self.capacity, self.weight = told.id, told.capacity, told.weight
        self.held, self.open = Held(told.capacity), 0
        self._recent, self._at = lately * told.weight, now

    @property
    def wait(self) -> float:
        """Tokens before a new one, by its weight."""
        return self.open / self.weight

    def cost(self, missing: int, now: float) -> float:
        """Of computing ``missing`` tokens here, by its weight."""
        return (max(0, missing) + QUEUE_SHARE * self.open) / self.weight + LATELY_SHARE * self.recent(now)

    def recent(self, now: float) -> float:
        """Tokens of prompts and answers it was sent, by its weight; those of RECENT_S ago count 1/e."""
        self._recent *= exp((self._at - now) / RECENT_S)
        self._at = now
        return self._recent / self.weight

    def add_recent(self, tokens: float, now: float) -> None:
        self._recent = self.recent(now) * self.weight + tokens


@dataclass(slots=True)
class Given:
    """A request that a replica was given: so many tokens of its ``prompt`` and its ``answer`` are open there."""

    _replica: _Replica
    prompt: int
    answer: int


class Router:
    """Chooses replicas, and keeps track of what their caches hold. One will do for many services."""

    def __init__(self, block_tokens: int = BLOCK_TOKENS, max_digests: int = MAX_DIGESTS) -> None:
        self._block_tokens, self._max_digests = block_tokens, max_digests
        self._replicas: dict[str, _Replica] = {}
        self._sessions: OrderedDict[str, str] = OrderedDict()  # → the replica that was asked last

    def choose(
        self, candidates: Sequence[Candidate], digests: Sequence[bytes], session: str, tokens: int, now: float
    ) -> str:
        """The id of one of ``candidates``, of which there is at least one.

        ``digests`` are those of the prompt's blocks, ``tokens`` what prompt and answer are expected to have together;
        requests of one ``session``, unless it is empty, had better stay together.
        """
        found = self._known(candidates, now)
        mean = sum(one.open for one in found) / sum(one.weight for one in found)
        most = max(min(one.wait for one in found), (1 + SPREAD) * mean)
        fit = {one: one.held.prefix(digests) for one in found if one.wait <= most + tokens / one.weight}
        costs = {one: one.cost(tokens - held * self._block_tokens, now) for one, held in fit.items()}
        least = min(costs.values())
        last = self._sessions.get(session)
        if any(one.id == last and cost <= least + SESSION_TOKENS for one, cost in costs.items()):
            return str(last)
        near = {one: fit[one] for one, cost in costs.items() if cost <= least + NEAR_TOKENS}
        return next(iter(near)).id if len(near) == 1 else _spread(near, digests, session, now).id

    def begun(self, id: str, digests: Sequence[bytes], session: str, tokens: int, now: float) -> Given:
        """The replica ``id``, which was chosen, gets the request. Returns what to call the others with."""
        replica = self._replicas[id]
        held = replica.held.prefix(digests)
        prompt = (len(digests) - held) * self._block_tokens
        given = Given(replica, prompt, max(0, tokens - len(digests) * self._block_tokens))
        replica.held.use(digests)
        replica.open += given.prompt + given.answer
        replica.add_recent(tokens, now)
        if session:
            self._sessions[session] = id
            self._sessions.move_to_end(session)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return given

    def answers(self, given: Given) -> None:
        """The first token of the answer is there, so the prompt is computed. It need not be told."""
        given._replica.open -= given.prompt
        given.prompt = 0

    def ended(self, given: Given) -> None:
        """The request is over, however it ended. A second time changes nothing."""
        given._replica.open -= given.prompt + given.answer
        given.prompt = given.answer = 0

    def lost(self, id: str) -> None:
        """The replica is gone, with its cache. Requests that it was given may still be said to be over."""
        if self._replicas.pop(id, None) is not None:
            self._share_room()

    def _known(self, candidates: Sequence[Candidate], now: float) -> list[_Replica]:
        """What is known of ``candidates``. A new one begins as if it had had as much to do lately as the others."""
        if any(one.id not in self._replicas for one in candidates):
            there = [self._replicas[one.id] for one in candidates if one.id in self._replicas]
            lately = sum(one.recent(now) for one in there) / max(1, len(there))
            for one in candidates:
                if one.id not in self._replicas:
                    self._replicas[one.id] = _Replica(one, lately, now)
            self._share_room()
        found = [self._replicas[one.id] for one in candidates]
        for one, replica in zip(candidates, found, strict=True):
            replica.weight = one.weight
            if one.capacity != replica.capacity:
                replica.capacity = one.capacity
                self._share_room()
        return found

    def _share_room(self) -> None:
        """Nobody's digests take more than an equal share of what there may be, however large its cache is."""
        share = self._max_digests // max(1, len(self._replicas))
        for replica in self._replicas.values():
            replica.held.resize(min(replica.capacity, share))


def _spread(near: dict[_Replica, int], digests: Sequence[bytes], session: str, now: float) -> _Replica:
    """One of ``near``, which cost the same; each with how many of ``digests`` it holds."""
    if not (session or digests):
        return min(near, key=lambda one: (one.wait, one.recent(now)))
    key = session.encode() or digests[min(max(near.values()), len(digests) - 1)]  # the first that is not held
    return max(near, key=lambda one: _score(key, one))


def _score(key: bytes, replica: _Replica) -> float:
    """Weighted rendezvous hashing: each replica is first for its share of the keys, and keeps them when others go."""
    drawn = int.from_bytes(blake2b(key + replica.id.encode(), digest_size=6).digest()) + 1
    return -replica.weight / log(drawn / (2**48 + 1))
