"""The router: where prefixes are, never too many at one, and nothing to those that are gone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llmos.front.routing import QUEUE_SHARE, SPREAD, Candidate, Given, Router
from llmos.infer.prefix import BLOCK_TOKENS

THREE = [Candidate(name, 1000) for name in "abc"]


def prompt(number: int, blocks: int = 20) -> list[bytes]:
    """Digests of a prompt that begins like no other."""
    return [b"%d-%d" % (number, block) for block in range(blocks)]


def ask(router: Router, blocks: list[bytes], session: str = "", among: list[Candidate] = THREE, now: float = 0) -> str:
    """A request that is over at once: who was chosen."""
    chosen, given = begin(router, blocks, session, among, now)
    router.ended(given)
    return chosen


def begin(
    router: Router, blocks: list[bytes], session: str = "", among: list[Candidate] = THREE, now: float = 0
) -> tuple[str, Given]:
    tokens = BLOCK_TOKENS * len(blocks)
    chosen = router.choose(among, blocks, session, tokens, now)
    return chosen, router.begun(chosen, blocks, session, tokens, now)


def test_a_prompt_goes_where_its_prefix_is() -> None:
    router = Router()
    homes = {number: ask(router, prompt(number)) for number in range(30)}
    assert set(homes.values()) == {"a", "b", "c"}
    for number, home in homes.items():
        assert ask(router, [*prompt(number), *prompt(1000 + number)]) == home


def test_of_two_prefixes_the_longer_one_counts() -> None:
    router = Router()
    first = ask(router, prompt(1, 10))
    other = [one for one in THREE if one.id != first]
    second = ask(router, [*prompt(1, 10), *prompt(2, 10)], among=other)
    assert ask(router, [*prompt(1, 10), *prompt(2, 10), *prompt(3, 3)]) == second


def test_a_queue_that_costs_more_than_the_prefix_saves_is_passed_by() -> None:
    router = Router()
    home = ask(router, prompt(1, 30))
    waiting = int(30 * BLOCK_TOKENS / QUEUE_SHARE / BLOCK_TOKENS) + 5
    alone = [one for one in THREE if one.id == home]
    _, long = begin(router, prompt(2, waiting), among=alone)
    for one in THREE:  # so that no bound decides
        if one.id != home:
            begin(router, [one.id.encode()], among=[one])
    again = prompt(1, 31)
    assert router.choose(THREE, again, "", 31 * BLOCK_TOKENS, 0) != home
    router.answers(long)
    assert router.choose(THREE, again, "", 31 * BLOCK_TOKENS, 0) == home


def test_what_is_computed_no_longer_waits() -> None:
    router = Router()
    blocks = prompt(1, 10)
    chosen = router.choose(THREE, blocks, "", 200, 0)
    given = router.begun(chosen, blocks, "", 200, 0)
    others = [one for one in THREE if one.id != chosen]
    assert all(ask(router, [], among=THREE) != chosen for _ in range(5))
    router.answers(given)
    router.ended(given)
    router.ended(given)  # a second time changes nothing
    assert router.choose([*others, *(one for one in THREE if one.id == chosen)], blocks, "", 200, 0) == chosen


def test_a_session_stays_also_without_a_common_prefix() -> None:
    router = Router()
    for number in range(20):
        home = ask(router, prompt(number), f"session-{number}")
        assert ask(router, prompt(100 + number, 3), f"session-{number}") == home


def test_a_busy_replica_loses_its_sessions() -> None:
    router = Router()
    home = ask(router, [], "chat")
    begin(router, prompt(1, 1000), among=[one for one in THREE if one.id == home])
    assert ask(router, prompt(2, 1), "chat") != home


def test_new_prompts_are_spread_as_before_by_a_router_that_knows_nothing() -> None:
    before, after = Router(), Router()
    homes = [ask(before, prompt(number), now=1000 * number) for number in range(60)]
    assert [ask(after, prompt(59 - number), now=1000 * number) for number in range(60)] == homes[::-1]
    assert min(Counter(homes).values()) >= 10


def test_when_one_is_lost_the_others_keep_their_prompts() -> None:
    router = Router()
    homes = {number: ask(router, prompt(number), f"s{number}") for number in range(40)}
    router.lost("b")
    left = [one for one in THREE if one.id != "b"]
    for number, home in homes.items():
        again = ask(router, [*prompt(number), *prompt(500)], f"s{number}", among=left)
        assert again != "b" and (home == "b" or again == home)


def test_one_that_comes_back_has_an_empty_cache() -> None:
    router = Router()
    home = ask(router, prompt(1))
    others = [one for one in THREE if one.id != home]
    router.lost(home)
    ask(router, prompt(1, 10), among=others)
    assert ask(router, prompt(1)) != home


def test_requests_of_a_lost_replica_may_end_later() -> None:
    router = Router()
    chosen, given = begin(router, prompt(1))
    router.lost(chosen)
    router.lost(chosen)
    router.ended(given)
    assert {ask(router, prompt(number)) for number in range(30)} == {"a", "b", "c"}


def test_a_new_replica_is_not_flooded() -> None:
    router = Router()
    for number in range(100):
        ask(router, prompt(number))
    four = [*THREE, Candidate("d", 1000)]
    chosen = Counter(ask(router, prompt(number), among=four) for number in range(100, 200))
    assert 10 <= chosen["d"] <= 45


def test_short_prompts_without_anything_to_tell_them_apart_take_turns() -> None:
    router = Router()
    chosen = Counter()
    for number in range(30):
        home = router.choose(THREE, [], "", 10, number / 10)
        router.ended(router.begun(home, [], "", 10, number / 10))
        chosen[home] += 1
    assert set(chosen.values()) == {10}


def test_a_heavier_replica_gets_more() -> None:
    router = Router()
    two = [Candidate("slow", 1000), Candidate("fast", 1000, weight=3)]
    for number in range(200):
        begin(router, prompt(number), among=two)
    chosen = Counter(ask(router, prompt(number), among=two) for number in range(200, 260))
    assert chosen["fast"] > chosen["slow"]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "begin", "answer", "end", "lose", "add"]),
        st.integers(0, 11),  # which prompt, request or replica
        st.integers(0, 40),  # blocks
        st.sampled_from(["", "", "s1", "s2"]),
        st.floats(0, 30),  # seconds since the last
    ),
    max_size=60,
)


@given(EVENTS, st.integers(20, 200))
def test_no_load_without_bounds_nothing_to_the_lost_and_no_memory_without_end(
    events: list[tuple[str, int, int, str, float]], max_digests: int
) -> None:
    router = Router(max_digests=max_digests)
    there = {name: Candidate(name, 50, weight) for name, weight in (("r0", 1.0), ("r1", 2.0), ("r2", 0.5))}
    open_: list[tuple[str, Given]] = []
    made, now = 3, 0.0
    for what, which, blocks, session, later in events:
        now += later
        if what == "begin":
            loads = {name: sum(g.prompt + g.answer for home, g in open_ if home == name) for name in there}
            chosen, given = begin(router, prompt(which, blocks), session, list(there.values()), now)
            assert chosen in there
            waits = {name: load / there[name].weight for name, load in loads.items()}
            mean = sum(loads.values()) / sum(one.weight for one in there.values())
            own = BLOCK_TOKENS * blocks / there[chosen].weight
            assert waits[chosen] <= max(min(waits.values()), (1 + SPREAD) * mean) + own + 1e-6
            open_.append((chosen, given))
        elif what == "answer" and open_:
            router.answers(open_[which % len(open_)][1])
        elif what == "end" and open_:
            router.ended(open_.pop(which % len(open_))[1])
        elif what == "lose" and len(there) > 1:
            gone = sorted(there)[which % len(there)]
            router.lost(gone)
            del there[gone]
            open_ = [(home, given) for home, given in open_ if home != gone]
        elif what == "add":
            there[f"r{made}"] = Candidate(f"r{made}", 50)
            made += 1
        known = router._replicas
        assert set(known) <= set(there)
        assert sum(len(one.held) for one in known.values()) <= max_digests
        assert all(len(one.held) <= 50 for one in known.values())


@given(st.lists(st.integers(0, 2**32), unique=True, max_size=40), st.integers(2, 6), st.data())
def test_a_replica_that_goes_moves_only_its_own_prompts(seeds: list[int], count: int, data: st.DataObject) -> None:
    replicas = [Candidate(f"r{number}", 1000) for number in range(count)]
    gone = data.draw(st.sampled_from(replicas))
    left = [one for one in replicas if one is not gone]
    for seed in seeds:  # each asked of routers that know nothing: hashing alone decides
        home = Router().choose(replicas, prompt(seed), "", 320, 0)
        assert home == gone.id or Router().choose(left, prompt(seed), "", 320, 0) == home
