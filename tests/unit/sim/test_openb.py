"""Pods packed one by one: the trace's variants, the policies' rules, and what a replay reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import DataError, UsageError
from llmos.sim import PLACING
from llmos.sim.descent import Descent, Outlooks
from llmos.sim.fragmentation import Fragmentation, Kind, Waste, typical
from llmos.sim.openb import UNLIMITED, WHOLE, Machine, Pod, Shape, arrivals, read_nodes, read_pods
from llmos.sim.openb_replay import Replay, pack, report
from llmos.sim.packing import Packing
from llmos.sim.policies import BestFit, Policy, Random

HALF, WHOLE_GPU, FOUR = Shape(4000, 100, 1, 500), Shape(8000, 100, 1, WHOLE), Shape(32000, 100, 4, WHOLE)
CORES = Shape(16000, 100, 0, 0)
SHAPES = [HALF, WHOLE_GPU, FOUR, CORES, Shape(1000, 50, 1, 190, frozenset({"T4", "A10"})), Shape(2000, 10, 1, 810)]
NODES = [Machine("a", 96000, 1000, 8, "G2"), Machine("b", 64000, 1000, 2, "T4"), Machine("c", 16000, 1000, 2, "P100")]


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_default_files_are_read_as_they_are(tmp_path: Path) -> None:
    nodes = _write(tmp_path / "n.csv", "sn,cpu_milli,memory_mib,gpu,model\nopenb-node-0000,64000,262144,2,P100\n")
    header = (
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time"
    )
    pods = _write(
        tmp_path / "p.csv", f"{header}\nlate,6000,12288,1,460,,LS,Running,7,9,7\nsoon,1,2,0,0,,BE,Failed,3,,\n"
    )
    assert read_nodes(nodes).rows == (Machine("openb-node-0000", 64000, 262144, 2, "P100"),)
    soon, late = read_pods(pods).rows
    assert (soon.name, soon.shape) == ("soon", Shape(1, 2, 0, 0))
    assert (late.shape, late.created_s) == (Shape(6000, 12288, 1, 460), 7.0)


def test_other_files_of_the_family(tmp_path: Path) -> None:
    nodes = _write(tmp_path / "n.csv", "sn,gpu,model\na,8,\nb,,\n")
    pods = _write(tmp_path / "p.csv", "name,num_gpu,gpu_spec\np,2,V100M16|V100M32\nq,,\n")
    assert read_nodes(nodes).rows == (Machine("a", UNLIMITED, UNLIMITED, 8), Machine("b", UNLIMITED, UNLIMITED, 0))
    assert [pod.shape for pod in read_pods(pods).rows] == [
        Shape(0, 0, 2, WHOLE, frozenset({"V100M16", "V100M32"})),
        Shape(0, 0, 0, 0),
    ]


@pytest.mark.parametrize("row", ["p,1,0", "p,0,500", "p,1,1001", "p,-1,", "p,1.5,", "p,two,"])
def test_a_pod_that_makes_no_sense_is_malformed(tmp_path: Path, row: str) -> None:
    path = _write(tmp_path / "p.csv", f"name,num_gpu,gpu_milli\nok,1,500\n{row}\n")
    with pytest.raises(DataError, match="line 3: "):
        read_pods(path)
    assert len(read_pods(path, skip_bad_rows=True).rows) == 1


def test_pods_are_drawn_until_they_ask_for_enough() -> None:
    pods = [Pod("a", HALF, 0.0), Pod("b", WHOLE_GPU, 1.0), Pod("c", CORES, 2.0)]
    for ratio in (0.5, 1.3):
        coming = arrivals(pods, ratio, 10 * WHOLE, np.random.default_rng(1))
        asked = sum(shape.gpu_milli for shape in coming)
        assert ratio * 10 * WHOLE <= asked < ratio * 10 * WHOLE + WHOLE
        assert coming == arrivals(pods, ratio, 10 * WHOLE, np.random.default_rng(1))
    assert set(coming) == {HALF, WHOLE_GPU, CORES}
    with pytest.raises(DataError, match="no pod needs a GPU"):
        arrivals(pods[2:], 1.3, WHOLE, np.random.default_rng(1))


def test_fragmentation_is_what_the_next_pod_cannot_use() -> None:
    fragmentation = Fragmentation({Kind.of(HALF): 0.5, Kind.of(FOUR): 0.25, Kind.of(CORES): 0.25})
    free = np.array([[1000, 1000, 1000, 1000, 400]])
    # half a GPU: the 400 left of one; four: these, too; no GPU: all 4400
    assert fragmentation.of("G2", np.array([96000]), free)[0] == pytest.approx(400 * 0.75 + 4400 * 0.25)
    # with 16 cores four GPUs cannot be used together
    assert fragmentation.of("G2", np.array([16000]), free)[0] == pytest.approx(400 * 0.5 + 4400 * 0.5)


def test_fragmentation_knows_who_may_use_a_model() -> None:
    fragmentation = Fragmentation({Kind(0, 1, 500, frozenset({"T4"})): 1.0})
    free, cores = np.array([[1000, 0]]), np.array([1])
    assert fragmentation.of("T4", cores, free)[0] == 0
    assert fragmentation.of("G2", cores, free)[0] == 1000


def test_waste_adds_the_gpus_for_which_cores_will_be_missing() -> None:
    shapes = [WHOLE_GPU, FOUR]  # 8 cores for each GPU
    fragmentation = Fragmentation(typical(shapes))
    free, cores = np.full((2, 8), WHOLE), np.array([64000, 40000])
    more = Waste(fragmentation, shapes).of("G2", cores, free) - fragmentation.of("G2", cores, free)
    assert more.tolist() == [0, 3000]


def test_descent_picks_the_gpu_and_the_node_that_lose_least() -> None:
    packing = Packing([Machine("a", 96000, 1000, 2, "G2"), Machine("b", 96000, 1000, 2, "G2")])
    packing.take(HALF, 1, [1])
    descent = Descent(packing, Outlooks([HALF, WHOLE_GPU], Fragmentation(typical([HALF, WHOLE_GPU]))))
    costs = descent.costs(HALF)
    assert costs.argmin() == 1 and descent.gpus(HALF, 1).tolist() == [1]
    assert costs[1] == pytest.approx(-250)  # the half GPU was lost to those who need a whole one
    assert costs[0] == pytest.approx(250)


def test_best_fit_leaves_least() -> None:
    packing = Packing(NODES)
    policy = BestFit(packing)
    assert policy.costs(HALF).argmin() == 2
    packing.take(WHOLE_GPU, 0, [3])
    assert policy.gpus(FOUR, 0).tolist() == [0, 1, 2, 4]


def _made(policy: str, packing: Packing, rng: np.random.Generator) -> Policy:
    fragmentation = Fragmentation(typical(SHAPES))
    made: dict[str, Callable[[], Policy]] = {
        "random": lambda: Random(packing, rng),
        "bestfit": lambda: BestFit(packing),
        "fgd": lambda: Descent(packing, Outlooks(SHAPES, fragmentation), scored=True),
        "llmos": lambda: Descent(packing, Outlooks(SHAPES, Waste(fragmentation, SHAPES))),
    }
    return made[policy]()


def _could_hold(packing: Packing, node: int, shape: Shape) -> bool:
    enough = [free for free in packing.free_milli[node] if free >= shape.milli]
    return (
        packing.cpu_milli[node] >= shape.cpu_milli
        and packing.memory_mib[node] >= shape.memory_mib
        and (not shape.gpus or len(enough) >= shape.gpus)
        and (not shape.models or NODES[node].model in shape.models)
    )


@pytest.mark.parametrize("policy", PLACING)
@given(coming=st.lists(st.sampled_from(SHAPES), max_size=40))
def test_nothing_is_given_out_twice_and_nothing_is_dropped_that_fits(policy: str, coming: list[Shape]) -> None:
    packing, rng = Packing(NODES), np.random.default_rng(0)
    made, asked = _made(policy, packing, rng), 0
    for shape in coming:
        possible = any(_could_hold(packing, node, shape) for node in range(len(NODES)))
        assert pack(packing, made, [shape], rng) == (not possible)
        asked += shape.gpu_milli * possible
    assert packing.free_milli.min() >= 0 and packing.cpu_milli.min() >= 0 and packing.memory_mib.min() >= 0
    assert packing.allocated_pct == pytest.approx(100 * asked / packing.capacity_milli)


@pytest.mark.parametrize("policy", PLACING)
def test_a_model_that_is_asked_for_is_given(policy: str) -> None:
    packing, rng = Packing(NODES), np.random.default_rng(0)
    dropped = pack(packing, _made(policy, packing, rng), [SHAPES[4]] * 12, rng)
    assert dropped == 2  # five fit on each of the two T4
    assert packing.free_milli[0].min() == WHOLE and packing.free_milli[1, :2].tolist() == [50, 50]


def test_a_replay_can_be_repeated_and_its_report_is_of_all_seeds() -> None:
    pods = [Pod(f"p{i}", SHAPES[i % len(SHAPES)], float(i)) for i in range(12)]
    for policy in PLACING:
        first, second = (Replay(NODES, pods).run(policy, 1.3, 3) for _ in range(2))
        assert first == second
    replay = Replay(NODES, pods)
    outcomes = [replay.run("llmos", 1.3, seed) for seed in range(3)]
    found = report(outcomes)
    assert found["allocated_pct"] == pytest.approx(sum(outcome.allocated_pct for outcome in outcomes) / 3)
    assert 0 <= found["fragmented_pct"] <= 100 - found["allocated_pct"] + 1e-9
    with pytest.raises(UsageError, match="no policy `best`"):
        replay.run("best", 1.3, 0)
