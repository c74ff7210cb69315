"""What a plan leaves out because it would change nothing would indeed have changed nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from llmos.core.admission import Admission
from llmos.core.backfill import Horizon
from llmos.core.plan import plan
from llmos.core.types import Desired, Plan, Snapshot
from tests.unit.sim.worlds import World, contested, of_one_tenant, worlds

RESERVATIONS = (0, 0, 1, 4)


def _with_nothing_left_out(desired: Desired, snapshot: Snapshot) -> Plan:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Admission, "_would_repeat", lambda *_: False)
        patched.setattr(Admission, "_only_room", lambda *_: False)
        patched.setattr(Horizon, "_all_free", lambda horizon: [math.inf] * len(horizon.free))
        return plan(desired, snapshot)


def _differs(world: World, reservations: int) -> bool:
    desired, snapshot = world.inputs()
    desired = replace(desired, reservations=reservations)
    short, whole = plan(desired, snapshot), _with_nothing_left_out(desired, snapshot)
    told = [(one.actions, dict(one.waiting), dict(one.estimates)) for one in (short, whole)]
    return told[0] != told[1]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.one_of(contested, of_one_tenant, worlds), st.sampled_from(RESERVATIONS))
def test_nothing_is_left_out_that_matters(world: World, reservations: int) -> None:
    assert not _differs(world, reservations)


def test_a_second_pass_that_is_left_out_although_it_matters_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    search = settings(
        max_examples=4000, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck)
    )
    monkeypatch.setattr(Admission, "_would_repeat", lambda *_: True)
    find(st.one_of(contested, worlds), lambda world: _differs(world, 4), settings=search)
