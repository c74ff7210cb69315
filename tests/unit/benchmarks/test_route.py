"""``route_hit`` and ``route_imbalance`` on traces of a few prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.frontdoor import replay, route
from benchmarks.frontdoor.replay import Asked, Replay, Routed, read
from benchmarks.rows import Options, Unmeasured
from benchmarks.serve_blocks import TRACE

ROOM = 40


def asked(*prompts: tuple[int, ...], every_s: float = 10.0, answer: int = 10) -> list[Asked]:
    """Prompts that come one after another, each when the one before is over."""
    return [Asked(number * every_s, blocks, 512 * len(blocks), answer) for number, blocks in enumerate(prompts)]


def conversations(count: int, turns: int) -> list[Asked]:
    """By turns, each with all that was said in it before."""
    return asked(
        *(tuple(1000 * one + block for block in range(turn + 1)) for turn in range(turns) for one in range(count))
    )


def test_one_replica_finds_what_it_has_seen() -> None:
    found = Replay(asked((1, 2, 3), (1, 2, 4), (1, 2, 4)), 1, ROOM).run(None)
    assert (found.blocks, found.found) == (9, 5)
    assert found.served == [9 * 512 + 30] and found.computed == [4 * 512 + 30]
    assert found.first_s == pytest.approx([n * 512 / replay.PREFILL_PER_S for n in (3, 1, 0)])


def test_prompts_wait_for_their_turn_and_find_those_before_them() -> None:
    found = Replay(asked((1, 2), (1, 2), every_s=0.0), 1, ROOM).run(None)
    assert found.found == 2
    assert found.first_s == pytest.approx([1024 / replay.PREFILL_PER_S] * 2)


def test_turns_of_a_conversation_go_where_it_is() -> None:
    talks = conversations(3, 6)
    by_turns, routed = (Replay(talks, 4, ROOM).run(policy) for policy in (None, Routed(ROOM, 512)))
    alone = Replay(talks, 1, 4 * ROOM).run(None)
    assert routed.found == alone.found > 2 * by_turns.found


def test_what_waits_at_a_lost_replica_is_asked_elsewhere() -> None:
    twice = asked((1, 2, 3), (4, 5, 6), (7, 8), (9, 9), (1, 2, 3), every_s=0.01)
    found = Replay(twice, 2, ROOM, lost_s=0.02).run(Routed(ROOM, 512))
    assert len(found.computed) == 1 and min(found.first_s) > 0
    assert found.served[0] >= 512 * 5


def _trace(directory: Path) -> Options:
    (directory / "traces").mkdir()
    rows = [
        {"timestamp": 1000 * one.at_s, "input_length": one.tokens, "output_length": one.answer, "hash_ids": one.blocks}
        for one in conversations(7, 20)
    ]
    (directory / "traces" / TRACE).write_text("\n".join(map(json.dumps, rows)))
    return Options(data=directory)


def test_rows_say_how_far_from_one_cache_and_from_taking_turns(tmp_path: Path) -> None:
    options = _trace(tmp_path)
    hit = route.route_hit(options)
    assert hit.ratio == pytest.approx(1) and hit.peer_value == pytest.approx(hit.value)
    assert hit.also["of_round_robin"] > 1 > hit.also["lost_ratio"] > 0.5
    assert 0 < hit.also["decision_us"] < hit.also["decision_p99_us"]
    even = route.route_imbalance(options)
    assert 1 <= even.value <= 4 and 1 <= even.also["lost"] <= 3 and even.also["served"] >= 1


def test_a_trace_is_read_in_seconds(tmp_path: Path) -> None:
    assert read(_trace(tmp_path).file("traces/" + TRACE))[:1] == conversations(7, 20)[:1]


def test_without_the_trace_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured, match="traces/mooncake_synthetic.jsonl"):
        route.route_hit(Options(data=tmp_path))
