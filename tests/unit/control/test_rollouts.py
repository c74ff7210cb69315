"""Services of the control module on a cluster of numbers: updates, canaries, rollbacks, aliases, and from zero."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.control.scaling import Scaling
from llmos.core.replicas import Rates
from llmos.errors import ConflictError, NotFoundError, SpecError, UsageError
from llmos.heartbeat import Heartbeat, Route
from llmos.sim.cluster import Outcome
from tests.unit.control.world import World, write_model

Row = dict[str, Any]


def spec(**fields: Any) -> Row:
    return {"kind": "Service", "name": "s", "model": "coder", **fields}


def put(world: World, **fields: Any) -> Row:
    return world.control.put_service("s", spec(**fields))


def look(world: World) -> Row:
    return world.control.get_service("s")


def weights(world: World) -> dict[str, float]:
    """The shares of the requests by model."""
    return {one["model"]: one["weight"] for one in look(world)["revisions"] if one["weight"]}


@pytest.fixture
def served(world: World) -> World:
    """One with coder@1 and coder@2, and a service of coder@1."""
    world.trained()
    other = write_model(world.layout.root / "other", world.tokenizer)
    assert world.control.import_model("coder", str(other))["ref"] == "coder@2"
    world.loop.rollouts.scaling = Scaling(world.clock)
    put(world, model="coder@1")
    world.run(3)
    return world


def test_a_service_becomes_ready_and_follows_its_spec(world: World) -> None:
    world.trained()
    two = {"min": 2, "max": 2}
    shown = put(world, replicas=two)
    assert (shown["phase"], shown["model"], shown["replicas"], shown["ready"]) == ("starting", "coder@1", 2, 0)
    assert shown["message"] == "waits to be deployed"
    world.run(3)
    shown = look(world)
    assert (shown["phase"], shown["ready"], shown["message"], shown["revision"]) == ("ready", 2, "", 1)
    assert world.control.status()["nodes"][0]["used"]["cpus"] == 2
    changed = put(world, replicas=two, max_batch=4)
    assert (changed["phase"], changed["ready"], changed["revision"]) == ("updating", 0, 2)
    world.run(3)
    assert look(world)["ready"] == 2 and world.cluster.observe((), ()).services.keys() == {"s-1", "s-2"}
    put(world, replicas={"min": 1, "max": 1}, max_batch=4)
    world.run(3)
    assert (look(world)["ready"], look(world)["revision"]) == (1, 2)  # nothing had to start anew
    world.control.delete_service("s")
    world.run(3)
    assert world.cluster.observe((), ()).services == {}
    told = [event["what"] for event in world.store.events.of("service", "s")]
    assert told[:2] == ["created", "deploying"] and {"changed", "removing", "deleted"} <= set(told)


def test_an_update_and_a_rollback_move_the_requests(served: World) -> None:
    put(served, model="coder@2")
    served.loop.tick()
    assert weights(served) == {"coder@1": 1.0}
    served.run(3)
    assert weights(served) == {"coder@2": 1.0} and look(served)["previous"] == 1
    assert served.control.rollback_service("s")["model"] == "coder@1"
    served.loop.tick()
    assert weights(served) == {"coder@1": 1.0}  # it was still there
    served.run(70)
    assert served.cluster.observe((), ()).services.keys() == {"s-1"}
    assert served.control.rollback_service("s")["model"] == "coder@2"


def test_only_what_replicas_run_is_rolled_back(served: World) -> None:
    put(served, model="coder@2", replicas={"min": 2, "max": 2}, aliases=["t"], limits={"concurrency": 9})
    back = served.control.rollback_service("s")
    assert (back["model"], back["spec"]["replicas"]) == ("coder@1", {"min": 2, "max": 2})
    assert back["spec"]["aliases"] == ["t"] and back["spec"]["limits"]["concurrency"] == 9


def test_there_is_something_to_roll_back_to_only_after_a_change(served: World) -> None:
    with pytest.raises(ConflictError, match="has run nothing before its revision 1"):
        served.control.rollback_service("s")


def test_a_canary_is_weighed_promoted_and_ended(served: World) -> None:
    with pytest.raises(ConflictError, match="no canary"):
        served.control.weigh_service("s", 0.5)
    put(served, model="coder@1", canary={"model": "coder@2", "weight": 0.25})
    served.run(3)
    assert weights(served) == {"coder@1": 0.75, "coder@2": 0.25}
    served.control.weigh_service("s", 0.5)
    served.loop.tick()
    assert weights(served) == {"coder@1": 0.5, "coder@2": 0.5}
    assert served.control.rollback_service("s")["spec"].get("canary") is None
    served.loop.tick()
    assert weights(served) == {"coder@1": 1.0}
    put(served, model="coder@1", canary={"model": "coder@2", "weight": 0.25})
    served.run(3)
    assert served.control.weigh_service("s", 1)["model"] == "coder@2"
    served.loop.tick()
    assert weights(served) == {"coder@2": 1.0}  # its replicas were there already
    with pytest.raises(ConflictError, match="in use by service s"):
        served.control.remove_model("coder@2")


def test_what_a_spec_may_not_say(served: World) -> None:
    for fields, told in (
        ({"canary": {"model": "coder", "weight": 0.5}}, "the service's own model"),
        ({"canary": {"model": "coder@2", "weight": 1.0}}, "canary.weight"),
        ({"replicas": {"min": 3, "max": 2}}, "min <= max"),
        ({"aliases": ["s"]}, "none equal to `name`"),
        ({"slo": {"token_s": 0}}, "slo.token_s"),
    ):
        with pytest.raises((SpecError, UsageError), match=told):
            put(served, **fields)
    served.control.put_service("t", spec(name="t", aliases=["both"]))
    for name, aliases in (("u", ["both"]), ("u", ["s"]), ("both", [])):
        with pytest.raises(ConflictError, match="is a name of service"):
            served.control.put_service(name, spec(name=name, aliases=aliases))


def test_services_follow_aliases_there_and_back(served: World) -> None:
    served.control.set_alias("coder", "prod", "1")
    assert put(served, model="coder@prod")["follows"] == "coder@prod"
    assert look(served)["revision"] == 1  # it runs what it ran
    promoted = served.control.set_alias("coder", "prod", "coder@2")
    assert (promoted["ref"], promoted["aliases"], promoted["alias"]) == ("coder@2", ["prod"], "coder@prod")
    served.run(3)
    assert weights(served) == {"coder@2": 1.0}
    assert served.control.rollback_alias("coder", "prod")["ref"] == "coder@1"
    served.loop.tick()
    assert weights(served) == {"coder@1": 1.0} and look(served)["follows"] == "coder@prod"
    history = served.control.get_alias("coder", "prod")["history"]
    assert [(one["version"], one["undone_at"] is None) for one in history] == [(1, True), (2, False)]
    with pytest.raises(ConflictError, match="service s follows coder@prod"):
        served.control.remove_alias("coder", "prod")
    put(served, model="coder@2")
    served.control.set_alias("coder", "prod", "1")
    assert look(served)["model"] == "coder@2"  # it follows no more
    with pytest.raises(ConflictError, match="in use by alias coder@prod"):
        served.control.remove_model("coder@1")
    served.control.remove_alias("coder", "prod")
    with pytest.raises(NotFoundError, match="no alias"):
        served.control.remove_alias("coder", "prod")
    with pytest.raises(NotFoundError, match="no model `coder@prod`"):
        served.control.get_model("coder@prod")


def test_what_an_alias_may_not_mean(served: World) -> None:
    other = write_model(served.layout.root / "third", served.tokenizer)
    served.control.import_model("fable", str(other))
    with pytest.raises(ConflictError, match="a version of fable"):
        served.control.set_alias("coder", "prod", "fable@1")
    with pytest.raises(NotFoundError, match="no model `coder@9`"):
        served.control.set_alias("coder", "prod", "9")
    with pytest.raises(UsageError, match="is not an alias"):
        served.control.set_alias("coder", "1st", "1")
    served.control.set_alias("coder", "prod", "1")
    with pytest.raises(ConflictError, match="never meant anything but"):
        served.control.rollback_alias("coder", "prod")


def test_what_the_front_door_is_told(served: World) -> None:
    put(served, model="coder@1", aliases=["t"], limits={"requests_per_min": 60})
    served.run(3)
    route = served.control.routes()["s"]
    (digest,) = route.weights
    model = {digest: str(served.layout.model("coder", 1))}
    assert route == Route(20, ("t",), {digest: 1.0}, holds=False, limits={"requests_per_min": 60}, models=model)
    assert digest == served.cluster.observe((), ()).services["s-1"].digest
    put(served, model="coder@2", replicas={"min": 4, "max": 4})  # no room beside the old one
    served.loop.tick()
    assert served.control.routes()["s"].holds
    put(served, model="coder@1", prefix_cache=False)
    served.run(3)
    assert not served.control.routes()["s"].models


def test_from_zero_and_back(served: World) -> None:
    put(served, model="coder@1", replicas={"min": 0, "max": 2}, idle_s=60)
    served.run(70)
    shown = look(served)
    assert (shown["phase"], shown["replicas"], shown["wake_s"]) == ("idle", 0, None)
    assert served.cluster.observe((), ()).services == {} and served.control.routes()["s"].holds
    scaling = served.loop.rollouts.scaling
    assert not scaling.demand("door", {"s": (0, 0)})
    assert scaling.demand("door", {"s": (1, 1)})  # worth a tick at once
    assert not scaling.demand("door", {"s": (2, 2)})  # which is on its way
    served.run(3)
    assert look(served)["ready"] == 1
    assert scaling.heard(Heartbeat("s", "", "r1", ""))  # it answers
    served.loop.tick()
    assert look(served)["wake_s"] == 3.0 and not scaling.heard(Heartbeat("s", "", "r1", ""))
    served.run(50)
    assert look(served)["replicas"] == 1
    served.run(10)
    assert look(served)["phase"] == "idle"


def test_replicas_follow_the_load(served: World) -> None:
    """Requests that take 20 s each, one every second, of which a replica has places for ten."""
    put(served, model="coder@1", replicas={"min": 1, "max": 4}, max_batch=10)
    scaling, arrived, tokens = served.loop.rollouts.scaling, 0, 0
    for second in range(60):
        arrived, tokens = arrived + 1, tokens + 100
        scaling.demand("door", {"s": (arrived, 0)})
        scaling.heard(Heartbeat("s", "", "r1", "", running=10, waiting=max(0, second - 20), tokens=tokens))
        served.run(1)
    served.run(2)
    shown = look(served)
    assert shown["replicas"] >= 3 and shown["ready"] == shown["replicas"] <= 4
    for _ in range(250):
        scaling.heard(Heartbeat("s", "", "r1", "", tokens=tokens))
        served.run(1)
    assert look(served)["replicas"] == 1


def test_a_service_of_a_fixed_size_owns_its_room(served: World) -> None:
    put(served, model="coder@1", replicas={"min": 2, "max": 2})
    served.run(3)
    (wanted,) = served.loop.sight.desired.services
    assert (wanted.replicas, wanted.owned) == (2, 2)
    served.control.submit_job(served.spec("guest", resources={"cpus": 2}))
    served.outcomes["guest-1"] = [Outcome(1000.0)] * 2
    served.run(3)
    put(served, model="coder@1", replicas={"min": 4, "max": 4})
    served.run(6)
    assert look(served)["ready"] == 4 and served.control.get_job("guest")["phase"] == "queued"


def test_what_was_measured_of_steps() -> None:
    from llmos.control.load import Load

    load = Load()
    load.count("tokens", "r1", 1000)  # there before we were
    tokens, at = 1000, 0.0
    for i in range(40):
        running = 2 + 6 * (i % 2)
        load.sample(at, running, 0, 1)
        load.sample(at, running, 0, 1)  # too soon to tell
        tokens += round(running / (0.05 + 0.005 * min(running, 8 - running + 2)))
        at += 1.0
        load.count("tokens", "r1", tokens)
    rates = load.rates(16, 30.0)
    assert isinstance(rates, Rates) and rates.step_s > 0 and rates.most == 16
    assert Load().rates(16, 30.0).step_s > 0  # a guess
    load.forget("r1")
    assert load.count("tokens", "r1", 5) == 0
    assert load.count("arrived", "door", 7) == 7 and load.count("arrived", "door", 3) == 3  # begun anew


def test_what_was_running_before_an_upgrade_goes_on(served: World) -> None:
    """A service of an earlier llmos has one revision: what it runs."""
    with served.store._database.write() as connection:
        connection.exec_driver_sql("DELETE FROM revisions")
        connection.exec_driver_sql("UPDATE services SET current = 0")
        connection.exec_driver_sql("PRAGMA user_version = 4")
    served.store.close()
    served.open()
    assert look(served)["revision"] == 1 and served.store.services.spec("s-1").model == "coder@1"
    served.run(2)
    assert look(served)["phase"] == "ready"
