"""How many replicas a service needs: from its promises, its load, and what one replica was measured to do.

A replica answers so many sequences at once that a token still comes in time; all of them together are servers of one
queue, in which a request may wait for as long as the promise of its first token leaves. So what is under way now says
how many replicas are needed now (:func:`demand`).

Bursts come faster than replicas start, and how fast a load grows says little about where it will be a cold start later:
a trend over two minutes made the twin's service larger and no better. The best that was found to go by is what was
needed at any time of the last few cold starts; less is kept only after that. For a load that is known without looking,
as when one plans how much to buy, :func:`needed` has the formula (M/M/N: Halfin and Whitt, Operations Research 29(3),
1981).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ATTAINED = 0.99
"""The share of requests for which the promises are to hold."""
BUSIEST = 0.95
"""Of the places of all replicas, the share that may be taken on average: beyond it queues grow for hours."""
PEAKS = 6
"""What was needed at any time of so many cold starts is kept: bursts come again."""


@dataclass(frozen=True, slots=True)
class Promises:
    """Seconds, infinite where nothing is promised: to the first token, for each token after it, and in the queue."""

    first_token_s: float = math.inf
    token_s: float = math.inf
    queue_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Traffic:
    """What arrives: requests per second, mean tokens of a prompt and of an answer; requests that wait in all queues
    now, and those that are being answered."""

    requests_per_s: float
    prompt: float
    answer: float
    waiting: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """What one replica was measured to do. A step that adds a token to each of n sequences takes ``step_s`` +
    n × ``sequence_s``; ``most`` is how many sequences have room; ``start_s`` is a cold start, from the decision to the
    first answer."""

    prompt_tokens_per_s: float
    step_s: float
    sequence_s: float
    most: int
    start_s: float

    def service_s(self, traffic: Traffic, sequences: int) -> float:
        """Seconds that a request holds its place when ``sequences`` are answered at once: its own steps, and the
        prompts that are read between them."""
        read_s = traffic.prompt / self.prompt_tokens_per_s
        return max(traffic.answer, 1.0) * (self.step_s + sequences * self.sequence_s) + sequences * read_s

    def first_s(self, traffic: Traffic, sequences: int) -> float:
        """Seconds to the first token of a request that has its place: other prompts (M/D/1), its own, and a step."""
        read_s = traffic.prompt / self.prompt_tokens_per_s
        busy = min(sequences * read_s / self.service_s(traffic, sequences), 0.99)
        return read_s * (1 + busy / (2 * (1 - busy))) + self.step_s + sequences * self.sequence_s


@dataclass(frozen=True, slots=True)
class Scale:
    """The count of replicas, why, and what decides about the next: ``recent`` has (time, replicas that were needed
    then), the newest last, without those that a later and larger one makes irrelevant."""

    count: int
    why: str = ""
    recent: tuple[tuple[float, int], ...] = ()


def needed(requests_per_s: float, slots: int, service_s: float, wait_s: float = math.inf) -> int:
    """The fewest replicas of ``slots`` places, each held for ``service_s`` seconds, that are at most :data:`BUSIEST`
    and in which at most 1 - :data:`ATTAINED` of the requests wait longer than ``wait_s``."""
    if requests_per_s == 0:
        return 0
    offered = requests_per_s * service_s  # places that are taken, on average

    def enough(replicas: int) -> bool:
        return late(offered, replicas * slots, wait_s / service_s) <= 1 - ATTAINED

    fewest = max(1, math.ceil(offered / (slots * BUSIEST)))
    if enough(fewest):
        return fewest
    more = 1
    while not enough(fewest + more):
        more *= 2
    low, high = fewest + more // 2, fewest + more
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def late(offered: float, servers: int, wait: float) -> float:
    """The share of requests that wait longer than ``wait`` times of service, where ``offered`` of ``servers`` places
    are taken on average: the chance to wait at all (Halfin and Whitt), times exp(-(servers - offered) · wait)."""
    if servers <= offered:
        return 1.0
    beta = (servers - offered) / math.sqrt(servers)
    density = math.exp(-beta * beta / 2) / math.sqrt(2 * math.pi)
    below = (1 + math.erf(beta / math.sqrt(2))) / 2
    return density / (density + beta * below) * math.exp(-(servers - offered) * wait)


def slots(promises: Promises, traffic: Traffic, rates: Rates) -> int:
    """The most sequences that one replica may answer at once and keep its promises; ``rates.most`` where not even one
    alone keeps them, since then fewer at once would only make the queue longer."""

    def kept(sequences: int) -> bool:
        token_s = rates.service_s(traffic, sequences) / max(traffic.answer, 1.0)
        return token_s <= promises.token_s and rates.first_s(traffic, sequences) <= promises.first_token_s

    low, high = 0, rates.most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kept(middle) else (low, middle - 1)
    return low or rates.most


def demand(promises: Promises, traffic: Traffic, rates: Rates) -> float:
    """Replicas, and parts of one, that are needed now for the promises to hold.

    What is under way, and what comes while it may wait, is done in time if there are places for it until then: of n
    requests that take s seconds each, with r more each second, none waits longer than w seconds on at least
    (n · s + w · r · s) / (s + w) places. Of those that wait, only as many count as are being answered, for most of more
    are late whatever starts now: those are answered within a cold start, and so is whatever may wait for longer.
    """
    places = slots(promises, traffic, rates)
    service_s = rates.service_s(traffic, places)
    spare_s = promises.first_token_s - rates.first_s(traffic, places)
    within_s = max(rates.start_s, service_s)
    wait_s = min(promises.queue_s, spare_s if spare_s > 0 else math.inf, within_s)
    late = min(traffic.waiting, max(traffic.running, 1))
    now = 1 / (1 + wait_s / service_s)
    coming = traffic.requests_per_s * service_s / BUSIEST
    piled = (traffic.waiting - late) * service_s / within_s
    return (now * (traffic.running + late) + (1 - now) * coming + piled) / places


def scale(
    bounds: tuple[int, int], promises: Promises, traffic: Traffic, rates: Rates, before: Scale, now: float
) -> Scale:
    """The count from ``now`` on, ``before`` being the last decision, or the count that there is.

    Never less than ``bounds[0]`` or more than ``bounds[1]``. It is what was needed at any time of the last
    :data:`PEAKS` cold starts.
    """
    low, high = bounds
    count = min(max(before.count, low), high)
    up = math.ceil(demand(promises, traffic, rates))
    recent = _recent(before.recent or ((now, count),), now, PEAKS * rates.start_s, min(max(up, low), high))
    after = max(one for _, one in recent)
    return Scale(after, _why(after, count, up, high, traffic, rates), recent)


def _recent(
    before: tuple[tuple[float, int], ...], now: float, window_s: float, wanted: int
) -> tuple[tuple[float, int], ...]:
    """What was enough in the last ``window_s`` seconds, ``wanted`` the newest: falling, as only maxima count."""
    kept = [(at, one) for at, one in before if at > now - window_s and one > wanted]
    return (*kept, (now, wanted))


def _why(after: int, count: int, up: int, high: int, traffic: Traffic, rates: Rates) -> str:
    load = f"{traffic.requests_per_s:.3g} requests/s" + (f", {traffic.waiting} waiting" if traffic.waiting else "")
    load += f"; {up} replicas would be enough, {high} are allowed" if up > high else ""
    if after > count:
        return f"grows from {count} to {after} replicas: {load}"
    if after < count:
        while_s = PEAKS * rates.start_s
        return f"shrinks from {count} to {after} replicas: {load}, and no more were needed for {while_s:.0f} s"
    return load
