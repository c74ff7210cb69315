"""``openb_130``: how much of the GPUs in Alibaba's trace each policy gives out when 130 % of them are asked for."""

from __future__ import annotations

from benchmarks.rows import Measured, Options
from llmos.sim import PLACING
from llmos.sim.openb import read_nodes, read_pods
from llmos.sim.openb_replay import Replay, report

DEMAND = 1.3
SEEDS, QUICK_SEEDS = 10, 2


def openb_130(options: Options) -> Measured:
    """Ours, in per cent; the peer is FGD, by us; the others are in ``also``. Means over the seeds."""
    nodes = read_nodes(options.file("traces/openb_nodes.csv"))
    pods = read_pods(options.file("traces/openb_pods.csv"))
    replay, seeds = Replay(nodes.rows, pods.rows), range(QUICK_SEEDS if options.quick else SEEDS)
    found = {name: report([replay.run(name, DEMAND, seed) for seed in seeds]) for name in PLACING}
    means = {name: of["allocated_pct"] for name, of in found.items()}
    spread = ", ".join(
        f"{name} {of['allocated_pct']:.2f} (sd {of['allocated_pct_sd']:.2f})" for name, of in found.items()
    )
    ours, fgd = means["llmos"], means["fgd"]
    also = {**means, "gain": ours - fgd, **{f"{name}_sd": of["allocated_pct_sd"] for name, of in found.items()}}
    return Measured(ours, fgd, ours / fgd, f"{spread}; {len(seeds)} seeds", peer="our FGD", also=also)
