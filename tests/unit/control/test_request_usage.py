from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from llmos.control.accounts import Accounts
from llmos.control.store import Store
from llmos.control.store.request_usage import KEPT_DAYS, REMEMBERED_S
from llmos.control.store.tables import recent_requests
from llmos.errors import ForbiddenError, NotFoundError, UsageError
from llmos.layout import Layout
from llmos.usage import CLIENT_GONE, FRONT_DOOR, GUESSED, REPLICA, Record
from tests.unit.control.usage_processes import control_module, front_door, record

DAY_S = 86400.0
NOON = 1_700_000_000.0 - 1_700_000_000.0 % DAY_S + DAY_S / 2


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(Layout(tmp_path))
    yield store
    store.close()


def totals(store: Store) -> dict[str, int]:
    (row,) = store.request_usage.sums((), "2000-01-01")
    return row


def remembered(store: Store) -> set[str]:
    with store._database.read() as connection:
        return {row[0] for row in connection.execute(select(recent_requests.c.id))}


def test_each_request_is_counted_once(store: Store) -> None:
    first, second = record("a"), replace(record("b"), status=503, key="other", prompt=3)
    gone = replace(record("c"), status=CLIENT_GONE, at=first.at + DAY_S)
    assert store.request_usage.add([first, second], 1.0) == 2
    assert store.request_usage.add([second, first, gone, gone], 2.0) == 1
    sums = {"requests": 3, "failed": 1, "abandoned": 1, "prompt": 23, "cached": 12, "completion": 3}
    assert totals(store) == sums
    assert [row["key"] for row in store.request_usage.sums(("key",), "2000-01-01")] == ["k", "other"]
    days = store.request_usage.sums(("day", "key"), "2000-01-01")
    assert [(row["day"], row["key"], row["requests"]) for row in days] == [
        *(("2023-11-14", "k", 1), ("2023-11-14", "other", 1), ("2023-11-15", "k", 1)),
    ]
    assert store.request_usage.sums((), "2023-11-15", key="k")[0]["requests"] == 1
    assert store.request_usage.sums((), "2023-11-16") == [dict.fromkeys(sums, 0)]


WITNESSES = st.sampled_from([GUESSED, REPLICA, FRONT_DOOR])
TOLD = st.lists(st.lists(st.tuples(st.integers(0, 5), WITNESSES), max_size=8), max_size=8)


def told(example: str, id: int, witness: int) -> Record:
    model, completion = f"m@{witness}", 10 * id + witness
    return replace(record(f"{example}-{id}"), service=example, witness=witness, model=model, completion=completion)


def test_the_best_witness_counts_in_whatever_order_they_come(store: Store) -> None:
    examples = map(str, count())

    @settings(max_examples=20)
    @given(TOLD)
    def check(batches: list[list[tuple[int, int]]]) -> None:
        example, best = next(examples), dict[int, int]()
        for batch in batches:
            store.request_usage.add([told(example, id, witness) for id, witness in batch], 1.0)
            for id, witness in batch:
                best[id] = max(witness, best.get(id, 0))
        rows = store.request_usage.sums(("model",), "2000-01-01", service=example)
        assert {row["model"]: row["requests"] for row in rows} == {
            f"m@{witness}": found for witness in range(3) if (found := list(best.values()).count(witness))
        }
        assert sum(row["completion"] for row in rows) == sum(10 * id + witness for id, witness in best.items())

    check()


def test_ids_are_forgotten_when_nobody_sends_them_again_and_days_when_they_are_long_past(store: Store) -> None:
    for at in (NOON, NOON + REMEMBERED_S / 2, NOON + REMEMBERED_S + 100):
        store.request_usage.add([replace(record(str(at)), at=at)], at)
    assert len(remembered(store)) == 3  # a pause does not age what came before it
    store.request_usage.add([replace(record("now"), at=NOON)], NOON + REMEMBERED_S + 200)
    assert str(NOON) not in remembered(store) and len(remembered(store)) == 3
    later = NOON + (KEPT_DAYS + 2) * DAY_S
    store.request_usage.add([replace(record("later"), at=later)], later)
    assert totals(store)["requests"] == 1


def test_a_clock_that_was_a_day_ahead_makes_nobody_count_twice(store: Store) -> None:
    batches = [[record(f"{name}{number}") for number in range(3)] for name in "abc"]
    for batch, at in zip(batches, (NOON, NOON + DAY_S, NOON + 1), strict=True):
        store.request_usage.add(batch, at)
    for later in (2, 70, 140):
        assert store.request_usage.add([one for batch in batches for one in batch], NOON + later) == 0
    assert totals(store)["requests"] == 9
    store.request_usage.add([record("last")], NOON + REMEMBERED_S + 300)
    store.request_usage.add([], NOON + REMEMBERED_S + 400)
    assert remembered(store) == {"last"}, "and all are forgotten in time"


@pytest.mark.parametrize(
    "wrong",
    [
        {"at": 1e300},
        {"at": None},
        {"prompt": -1},
        {"prompt": 2**70},
        {"model": {}},
        {"key": "\ud800"},
        {"status": True},
    ],
)
def test_one_that_cannot_be_counted_is_told_and_keeps_no_other_from_it(
    store: Store, wrong: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    accounts = Accounts(store)
    good, bad = asdict(record("good")) | {"colour": "of a newer version"}, asdict(record("bad")) | wrong
    assert accounts.record_usage([bad, good, {}]) == 1 and remembered(store) == {"good"}
    (name,) = wrong
    assert "usage of request `bad` is not counted" in caplog.text and f"`{name}` is" in caplog.text


def test_usage_is_shown_to_those_whose_it_is(store: Store) -> None:
    accounts = Accounts(store, clock=lambda: NOON + DAY_S)
    keys = {name: accounts.create_key(name, (scope,)) for name, scope in (("a", "submit"), ("b", "admin"))}
    mine = replace(record("1"), key=keys["a"]["id"], tenant="default", at=NOON)
    assert accounts.record_usage([asdict(mine), asdict(replace(record("2"), tenant="other", at=NOON))]) == 2
    admin = accounts._auth.authenticate(f"Bearer {keys['b']['secret']}")
    user = accounts._auth.authenticate(f"Bearer {keys['a']['secret']}")
    assert accounts.usage(asked_by=admin)["total"]["requests"] == 2
    seen = accounts.usage(asked_by=user, by=["service", "key"], since="2d", key="a")
    assert seen["rows"] == [
        {
            **{"key": keys["a"]["id"], "service": "s", "key_name": "a", "requests": 1, "failed": 0, "abandoned": 0},
            **{"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 1},
        }
    ]
    assert accounts.usage(since="1h")["rows"] == [] and accounts.usage(since="1h")["total"]["requests"] == 0
    with pytest.raises(ForbiddenError, match="belongs to tenant `default`: it may not see what others use"):
        accounts.usage(asked_by=user, tenant="other")
    with pytest.raises(NotFoundError, match="no key `ghost`"):
        accounts.usage(key="ghost")
    for wrong in ({"since": "yesterday"}, {"by": ["colour"]}, {"since": "9" * 15 + "d"}):
        with pytest.raises(UsageError, match="expected"):
            accounts.usage(**wrong)


def more_answers(file: Path, count: int) -> None:
    """Wait until ``count`` more requests have been answered."""
    deadline, before = time.monotonic() + 20, lines(file)
    while lines(file) < before + count:
        assert time.monotonic() < deadline, "nobody answers"
        time.sleep(0.01)


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_killed_front_doors_and_control_modules_lose_and_double_nothing(tmp_path: Path) -> None:
    """SIGKILL in a loop. Every request whose client saw the end of its answer is counted once; one that was being
    answered may be."""
    random.seed(6)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.control.usage_processes"])
    incarnations = count()

    def start(which: str) -> BaseProcess:
        more = (next(incarnations),) if which == "front_door" else ()
        target = front_door if which == "front_door" else control_module
        process = context.Process(target=target, args=(tmp_path, *more), daemon=True)
        process.start()
        return process

    running = {which: start(which) for which in ("control_module", "front_door")}
    for _ in range(8):
        more_answers(tmp_path / "answered", 20)  # a kill before anything has been done would show nothing
        time.sleep(random.uniform(0.0, 0.1))
        which = random.choice(list(running))
        running[which].kill()
        running[which].join()
        running[which] = start(which)
    running["front_door"].kill()
    running["front_door"].join()
    last = context.Process(target=front_door, args=(tmp_path, next(incarnations), 5), daemon=True)
    last.start()
    last.join(30)
    running["control_module"].kill()
    running["control_module"].join()

    store = Store(Layout(tmp_path))
    answered, counted = (tmp_path / "answered").read_text().split(), remembered(store)
    assert len(answered) == len(set(answered)) > 100
    assert last.exitcode == 0 and set(answered) <= counted
    assert len(counted - set(answered)) <= next(incarnations)  # at most one each: killed between the two lines
    found = totals(store)
    assert found["requests"] == found["completion"] == len(counted) and found["prompt"] == 10 * len(counted)
    store.close()
