"""How long a step may take: in proportion to its tokens."""

from __future__ import annotations

import math

from llmos.infer.patience import TIMES, Patience


def test_a_step_may_take_several_times_what_its_tokens_took_before() -> None:
    patience = Patience(12.0, 120.0)
    assert patience.limit_s(512) == 120.0
    patience.learn(16, 3.0)
    assert [patience.limit_s(tokens) for tokens in (1, 16, 17, 512)] == [TIMES * s for s in (3.0, 3.0, 6.0, 96.0)]
    patience.learn(512, 40.0)  # a prompt is faster, token for token
    patience.learn(1, 2.0)
    assert patience.limit_s(16) == TIMES * 3.0
    patience.learn(2, 5.0)
    assert patience.limit_s(1) == TIMES * 5.0


def test_nothing_hangs_before_the_least_time() -> None:
    patience = Patience(12.0)
    assert patience.limit_s(1) == math.inf
    patience.learn(16, 0.001)
    assert patience.limit_s(1) == patience.limit_s(512) == 12.0
