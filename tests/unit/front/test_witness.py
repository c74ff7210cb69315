from __future__ import annotations

from llmos.front.witness import MOST, PATIENCE_S, Witness
from llmos.openai.caller import Caller
from llmos.usage import CLIENT_GONE, REPLICA, Tokens


def test_what_did_not_end_well_is_told_at_once_and_the_rest_later() -> None:
    now = [100.0]
    witness = Witness("s", "m@1", lambda: now[0], lambda: 1.7e9)
    well, left = Caller("k", "t", "req_1"), Caller("k", "t", "req_2")
    witness.ended(well, Tokens(10, 0, 5), 200)
    witness.ended(left, Tokens(10, 8, 3), CLIENT_GONE)
    (record,) = first = witness.due()
    assert (record.id, record.service, record.model, record.witness) == ("req_2", "s", "m@1", REPLICA)
    assert (record.prompt, record.cached, record.completion, record.status) == (10, 8, 3, CLIENT_GONE)
    assert witness.due() == first  # until somebody has it
    witness.told(first)
    assert witness.due() == []
    now[0] += PATIENCE_S
    later = witness.due()
    assert [one.id for one in later] == ["req_1"]
    witness.ended(left, Tokens(), 503)
    witness.told(later)
    assert [one.status for one in witness.due()] == [503]


def test_so_many_are_told_at_once_and_none_is_left_out() -> None:
    witness = Witness("s", "m@1", lambda: 0.0)
    for number in range(MOST + 5):
        witness.ended(Caller("k", "t", str(number)), Tokens(), 500)
    told: list[str] = []
    while records := witness.due():
        assert len(records) <= MOST
        told += [one.id for one in records]
        witness.told(records)
    assert told == [str(number) for number in range(MOST + 5)]
