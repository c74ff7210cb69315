"""Runs the rows of a benchmark and reports them: a table on stderr, one JSON object on stdout.

A row is a named function in a module of its own, found by import string: what one row needs, or breaks, is no matter of
the others. A row that cannot run is reported with ``met: false`` and why; none is ever left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]


class Unmeasured(Exception):
    """A row cannot be measured here; the message says why, and what it would take."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. ``quick`` measures less of the same; ``data`` is the directory that has traces and texts."""

    quick: bool = False
    data: Path | None = None
    device: str = "cpu"

    def file(self, name: str) -> Path:
        """The file ``name`` of the data. Raises Unmeasured when there is none."""
        if self.data is None:
            raise Unmeasured(f"skipped: needs {name}; give --data DIR or set LLMOS_DATA")
        if not (self.data / name).exists():
            raise Unmeasured(f"skipped: the data directory has no {name}")
        return self.data / name


@dataclass(frozen=True, slots=True)
class Target:
    """What the ``value``, the ``ratio`` or a figure in ``also`` of a row must be: between ``least`` and ``most``."""

    of: str
    least: float = float("-inf")
    most: float = float("inf")
    note: str = ""

    def met(self, found: Measured) -> bool:
        """Whether ``found`` is so."""
        number = {**found.also, "value": found.value, "ratio": found.ratio}.get(self.of)
        return number is not None and self.least <= number <= self.most

    def __str__(self) -> str:
        bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", self.least), ("<=", self.most)) if abs(bound) < 1e30]
        return f"{self.of} {' and '.join(bounds)}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a row's function returns: its number, that of the peer, how the two compare, and what else was measured."""

    value: float
    peer_value: float | None = None
    ratio: float | None = None
    why: str = ""
    peer: str | None = None
    """If it is known only now."""
    also: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """``run`` is ``module:function``, called with Options; returns Measured. All of ``targets`` must be met."""

    name: str
    run: str
    unit: str
    peer: str
    targets: tuple[Target, ...]

    def measure(self, options: Options) -> dict[str, Any]:
        """The row of the report. Raises nothing but what ends the process."""
        began, found, why = time.perf_counter(), None, ""
        try:
            module, _, function = self.run.partition(":")
            found = getattr(import_module(module), function)(options)
        except Unmeasured as reason:
            why = str(reason)
        except Exception as error:  # whatever a row does wrong is its own failure
            why = " ".join(f"failed: {type(error).__name__}: {error}".split())  # a row is one line
        return {
            "name": self.name,
            "value": _rounded(found.value if found else None),
            "unit": self.unit,
            "peer": (found.peer if found else None) or self.peer,
            "peer_value": _rounded(found.peer_value if found else None),
            "ratio": _rounded(found.ratio if found else None),
            "target": " and ".join(map(str, self.targets)),
            "met": found is not None and all(target.met(found) for target in self.targets),
            "why": found.why if found else why,
            "also": {name: _rounded(number) for name, number in found.also.items()} if found else {},
            "wall_s": round(time.perf_counter() - began, 1),
            "quick": options.quick,
            "commit": commit(),
        }


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def main(name: str, rows: Sequence[Row], argv: Sequence[str] | None = None) -> int:
    """The command line of a benchmark. Returns its exit code: 0 when every row is met."""
    options = _parser(name, rows).parse_args(argv)
    data = options.data or (Path(os.environ["LLMOS_DATA"]) if os.environ.get("LLMOS_DATA") else None)
    asked = Options(options.quick, data, os.environ.get("DEVICE", "cpu"))
    if data is None:
        print(
            "no --data and no LLMOS_DATA: rows that read traces or texts will say that they were skipped",
            file=sys.stderr,
        )
    before = _read(options.merge)
    found = {row["name"]: row for row in before}
    for row in rows:
        if not options.only or row.name in options.only:
            found[row.name] = row.measure(asked)
            print(line(found[row.name]), file=sys.stderr, flush=True)
            if options.merge:  # after each row: a long run may be cut off
                options.merge.write_text(json.dumps(_report(rows, found), indent=2) + "\n")
    report = _report(rows, found)
    if not options.json:
        print(table(report["rows"]), file=sys.stderr)
    print(json.dumps(report, indent=2))
    return 0 if all(row["met"] for row in report["rows"]) else 1


def _report(rows: Sequence[Row], found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What goes to stdout: the rows that there are, in their order."""
    return {"machine": machine(), "commit": commit(), "rows": [found[row.name] for row in rows if row.name in found]}


def _parser(name: str, rows: Sequence[Row]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every row, smaller")
    parser.add_argument("--json", action="store_true", help="no table on stderr, only the JSON object on stdout")
    parser.add_argument("--data", type=Path, metavar="DIR", help="traces and texts (default: LLMOS_DATA)")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in rows], help="these rows only")
    parser.add_argument("--merge", type=Path, metavar="FILE", help="a report to put the rows into, beside its others")
    return parser


def _read(report: Path | None) -> list[dict[str, Any]]:
    """The rows of a report made before, if there is one."""
    return json.loads(report.read_text())["rows"] if report and report.exists() else []


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    value = "-" if row["value"] is None else f"{row['value']:,g}"
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
    met = "met" if row["met"] else "NOT MET"
    return f"{row['name']:20} {value:>10} {row['unit']:24} ratio {ratio:>7}  {row['target']:36} {met:8} {row['why']}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows, and how many of them are met."""
    return "\n".join(["", *map(line, rows), f"{sum(row['met'] for row in rows)} of {len(rows)} met"])


def machine() -> dict[str, Any]:
    """What the numbers were measured on: kinds and sizes, no names and no paths."""
    torch = import_module("torch")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [text.split(":", 1)[1].strip() for text in info.read_text().splitlines() if text.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


def commit() -> str:
    """The commit of this tree, with ``+`` when files differ from it; "unknown" outside of a repository."""

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return asked.stdout.strip()

    found = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
    return f"{found}{'+' if changed else ''}" or "unknown"
