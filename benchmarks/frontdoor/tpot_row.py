"""What the front door adds to the time per token of a real engine: 32 streams of the 135 M model, random weights."""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from typing import Any

from benchmarks.frontdoor.client import Load, Sample
from benchmarks.frontdoor.contenders import Address, Client, Contenders
from benchmarks.frontdoor.mock import AT_ONCE
from benchmarks.rows import Measured, Options, Unmeasured
from benchmarks.serve_models import SMOLLM_135M

STREAMS, TOKENS = 32, 64
ROUNDS, QUICK_ROUNDS = 9, 2
_PROMPT = "abcd " * 40
_LIMIT_S = 120.0


def tpot_ms(options: Options) -> Measured:
    """The median over the streams of each round; then the median difference over rounds by turns."""
    if options.device != "cpu":
        raise Unmeasured("skipped: a row of the CPU; run without DEVICE")
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    tokens = TOKENS // 2 if options.quick else TOKENS
    with ExitStack() as stack:
        contenders, client = Contenders(), Client()
        stack.callback(client.close)
        engine = stack.enter_context(contenders.engine(SMOLLM_135M.written()))
        ours = stack.enter_context(contenders.ours(engine))
        for address in (engine, ours):
            _ask(client, address, tokens)  # caches are filled, connections are made
        pairs = []
        for turn in range(rounds):
            order = (engine, ours) if turn % 2 else (ours, engine)
            found = {address: _tpot_ms(_ask(client, address, tokens), tokens) for address in order}
            pairs.append((found[engine], found[ours]))
            print(f"bare {pairs[-1][0]:.2f} ms per token, ours {pairs[-1][1]:.2f}", file=sys.stderr, flush=True)
    bare, mine = (statistics.median(side) for side in zip(*pairs, strict=True))
    added = [through - direct for direct, through in pairs]
    also = {"bare": bare, "ours": mine, "least": min(added), "most": max(added)}
    return Measured(statistics.median(added), bare, mine / bare, f"{rounds} rounds of {STREAMS} streams", also=also)


def _ask(client: Client, address: Address, tokens: int) -> Sample:
    """One answer for each stream: they begin together and end together, so that the batch is the same all along."""
    body: dict[str, Any] = {"model": AT_ONCE, "prompt": _PROMPT, "stream": True}
    body |= {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    some = 1  # an event may have two tokens, and one without text has none
    return client.run(Load(address.port, "/v1/completions", address.key, body, STREAMS, _LIMIT_S, some, once=True))


def _tpot_ms(sample: Sample, tokens: int) -> float:
    gaps_s = [(last - first) / (tokens - 1) for first, last in zip(sample.first_s, sample.last_s, strict=True)]
    return statistics.median(gaps_s) * 1000
