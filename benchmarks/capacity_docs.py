"""What docs/capacity.md shows of real output: the published runs, and what ``llmos estimate`` says.

    python -m benchmarks.capacity_docs            says whether the page is as it would be made now; exit code 1 if not
    python -m benchmarks.capacity_docs --write    makes it so

A block lies between ``<!-- made: NAME -->`` and ``<!-- end -->``; NAME is ``published``, or a command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.published import table

PAGE = Path(__file__).parent.parent / "docs" / "capacity.md"
_BLOCK = re.compile(r"(<!-- made: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_ENTRY = "import sys; from llmos.cli.app import main; sys.argv[0] = 'llmos'; main()"


def made(page: str) -> str:
    """``page`` with every block as it is made now."""
    names = [block["name"] for block in _BLOCK.finditer(page)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = dict(zip(names, pool.map(_content, names), strict=True))
    return _BLOCK.sub(lambda block: f"{block[1]}{contents[block['name']]}\n{block[3]}", page)


def _content(name: str) -> str:
    if name == "published":
        return table()
    command, *arguments = name.split()
    if command != "llmos":
        raise ValueError(f"a block of {PAGE.name} is made by `{name}`: expected `published` or `llmos …`")
    return f"```\n$ {name}\n{_said(arguments)}\n```"


def _said(arguments: list[str]) -> str:
    """What ``llmos`` prints, without the state of this machine: nothing is calibrated."""
    with tempfile.TemporaryDirectory() as state:
        done = subprocess.run(
            [sys.executable, "-c", _ENTRY, *arguments],
            env={**os.environ, "LLMOS_STATE_DIR": state, "NO_COLOR": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if "this should not happen" in done.stdout:
        raise RuntimeError(f"`llmos {' '.join(arguments)}` failed: {done.stdout}")
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = made(before)
    if "--write" in sys.argv:
        PAGE.write_text(after, encoding="utf-8")
    elif before != after:
        sys.exit(f"{PAGE.name} is not as it would be made now: run `python -m benchmarks.capacity_docs --write`")
