"""Who reads a prompt, and who waits for it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llmos.infer.messages import CoreRequest
from llmos.infer.request import SamplingParams
from llmos.infer.twins import SHORTEST, Twins

_ids = map(str, itertools.count())


def _request(number: int, tenant: str = "", priority: int = 0, length: int = SHORTEST) -> CoreRequest:
    prompt = (number,) * length
    return CoreRequest(next(_ids), prompt, SamplingParams(), 0, 999, frozenset(), 0.0, tenant, priority=priority)


def test_only_the_same_prompt_of_the_same_tenant_and_priority_waits() -> None:
    twins = Twins()
    others = [_request(1), _request(2), _request(1, "b"), _request(1, priority=1), _request(1, length=SHORTEST + 1)]
    assert not any(twins.hold(one) for one in others)
    assert not any(twins.hold(_request(1, length=SHORTEST - 1)) for _ in range(2))
    assert all(twins.hold(one) for one in (_request(1), _request(2), _request(1, "b")))


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40))
def test_everybody_goes_on_once_the_reader_does(script: list[tuple[int, bool]]) -> None:
    """Each of the script asks for a prompt, or ends whoever reads it."""
    twins, readers, sent, asked = Twins(), dict[int, CoreRequest](), set[str](), set[str]()
    for number, ends in [*script, *((number, True) for number in range(3))]:
        if ends and number in readers:
            sent |= {one.id for one in twins.release(readers.pop(number).id)}
        elif not ends:
            request = _request(number)
            asked.add(request.id)
            assert twins.hold(request) == (number in readers)
            if number not in readers:
                readers[number] = request
                sent.add(request.id)
    assert sent == asked
    assert not twins.release("nobody")
