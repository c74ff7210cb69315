"""What `llmos status` shows: one screen, however large the cluster is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llmos.cli.text import columns, duration, fields, phase, plain, size

Rows = list[tuple[str, ...]]

NODES = 12
"""More nodes than that are shown in groups of equal ones."""
QUEUES = 10
WAITING = 5
SERVICES = 10


def overview(view: Mapping[str, Any]) -> str:
    """The screen for the answer of ``GET /status``."""
    control = view["control"]
    running = ", ".join(f"{count} {phase(word)}" for word, count in view["jobs"].items() if count)
    about = [
        ("control", f"pid {control['pid']}, up {duration(control['uptime_s'])}, llmos {control['version']}"),
        ("error", plain(control["error"])),
        ("jobs", running or "none"),
        *((kind, _amounts(view[kind.lower()])) for kind in ("GPUs", "CPUs") if view[kind.lower()]["total"]),
    ]
    services: Rows = [
        (s["name"], s["model"], phase(s["phase"]), f"{s['ready']}/{s['replicas']}") for s in view["services"]
    ]
    waiting: Rows = [(job, plain(why)) for job, why in view["waiting"].items()]
    more = sum(queue["waiting"] for queue in view["queues"]) - len(waiting)
    tables: list[tuple[Sequence[str], Rows, int]] = [
        (("NODE", "CPUS", "GPUS", "MEMORY", "STATE", "WHY"), _nodes(view["nodes"]), 0),
        (("KIND", "NODES", "WANTED", "MOST", "TROUBLE"), [_kind(kind) for kind in view.get("kinds", [])], 0),
        (
            ("TENANT", "RUNNING", "WAITING", "CPUS", "GPUS", "HOLDS", "SHARE"),
            [*map(_queue, view["queues"][:QUEUES])],
            len(view["queues"]) - QUEUES,
        ),
        (("SERVICE", "MODEL", "PHASE", "READY"), services[:SERVICES], len(services) - SERVICES),
        (("WAITING", "WHY"), waiting[:WAITING], max(len(waiting) - WAITING, 0) + max(more, 0)),
    ]
    where = {"WAITING": "llmos queue", "SERVICE": "llmos services", "TENANT": "llmos status -o json"}
    return "\n\n".join([fields(about), *(_table(*table, where) for table in tables if table[1])])


def _table(header: Sequence[str], rows: Rows, more: int, where: dict[str, str]) -> str:
    """``rows`` without columns that are empty in all of them, and how many ``more`` there are."""
    filled = [i for i in range(len(header)) if any(row[i] for row in rows)]
    shown = columns([header[i] for i in filled], ([row[i] for i in filled] for row in rows))
    return shown + (f"\nand {more:,} more: `{where[header[0]]}`" if more > 0 else "")


def _amounts(found: dict[str, float]) -> str:
    """``"64: 48 used (8 of them lent), 4 foreign, 10 free, 2 on nodes that take no work"``."""
    lent = f" ({found['lent']:g} of them lent)" if found["lent"] else ""
    parts = [
        (found["used"], f"used{lent}"),
        (found["foreign"], "foreign"),
        (found["free"], "free"),
        (found["closed"], "on nodes that take no work"),
    ]
    return f"{found['total']:g}: " + ", ".join(f"{n:g} {what}" for n, what in parts if n or what in ("used", "free"))


def _kind(kind: dict[str, Any]) -> tuple[str, ...]:
    """A kind of node that the autoscaler starts: how many there are and should be, and why not."""
    pause = f"; next try in {duration(kind['retry_s'])}" if kind["retry_s"] else ""
    return kind["name"], *(str(kind[count]) for count in ("there", "wanted", "most")), plain(kind["trouble"]) + pause


def _nodes(nodes: Sequence[dict[str, Any]]) -> Rows:
    """A row for each node; on a large cluster one for all nodes that are alike and take work."""
    if len(nodes) <= NODES:
        return [_node(node) for node in nodes]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for node in nodes:
        if node["state"] == "alive":
            total = node["total"]
            groups.setdefault((total["gpus"], total["cpus"], node["kind"]), []).append(node)
    alike = [_group(groups[key]) for key in sorted(groups, reverse=True)]
    others = [node for node in nodes if node["state"] != "alive"]
    hidden = Counter(node["state"] for node in others[NODES:])
    rest = [(f"{count} more", "", "", "", phase(state), "") for state, count in hidden.items()]
    return [*alike, *map(_node, others[:NODES]), *rest]


def _group(nodes: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Nodes that are alike, as one row: what is held of what all of them have."""
    kind = f" of kind {plain(nodes[0]['kind'])}" if nodes[0]["kind"] else ""
    name = f"{len(nodes):,} node{'s' * (len(nodes) > 1)}{kind}"
    return name, *_shares(nodes), phase("alive"), ""


def _node(node: dict[str, Any]) -> tuple[str, ...]:
    return node["id"][:12], *_shares([node]), phase(node["state"]), plain(node["why"])


def _shares(nodes: Iterable[dict[str, Any]]) -> tuple[str, str, str]:
    """``used/total`` of each resource, and how much of what is used others hold."""
    found = list(nodes)

    def share(kind: str, shown: Callable[[float], str]) -> str:
        total, used, foreign = (sum(node[part][kind] for node in found) for part in ("total", "used", "foreign"))
        others = f" ({shown(foreign)} foreign)" if foreign else ""
        return f"{shown(used + foreign)}/{shown(total)}{others}"

    return share("cpus", "{:g}".format), share("gpus", "{:g}".format), share("memory_bytes", size)


def _queue(queue: dict[str, Any]) -> tuple[str, ...]:
    counts = plain(queue["tenant"]), str(queue["running"]), str(queue["waiting"])
    held = f"{queue['cpus']:g}", f"{queue['gpus']:g}"
    return *counts, *held, f"{queue['share']:.0%}", f"{queue['guaranteed']:.0%}"
