"""Install llmos with the tested versions, and on a machine without an NVIDIA GPU a torch without CUDA.

    python scripts/install.py [-e] TARGET        TARGET: `.`, `.[dev]` or a wheel

On Linux the torch of the public package index brings gigabytes of CUDA libraries. Without a GPU this script therefore
asks pip first what it would take. If that includes CUDA it takes torch from PyTorch's own index of CPU builds; if not
(another platform, or a pip that is configured to find a CPU build) pip has its way. Standard library only: it runs in
an empty environment.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def pinned(name: str, constraints: Path) -> str:
    """The version that ``constraints`` pins ``name`` to. Raises SystemExit if it does not."""
    found = re.search(rf"^{re.escape(name)}==([^\s;]+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise SystemExit(
            f"{constraints} does not pin `{name}`: expected a line `{name}==VERSION`; run `make constraints`"
        )
    return found[1]


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that its driver can see."""
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True, check=False).returncode == 0


def brings_cuda(report: dict[str, object]) -> bool:
    """Whether what pip would install, by its installation report (version 1), includes CUDA libraries."""
    packages: list[dict[str, dict[str, str]]] = report["install"]  # type: ignore[assignment]
    return any(re.match(r"nvidia-|cuda-|triton$", package["metadata"]["name"].lower()) for package in packages)


def torch_arguments(version: str, constraints: Path) -> list[str]:
    """The arguments of `pip install` that bring torch ``version`` without CUDA."""
    wanted = f"torch=={version}"
    ask = [*_PIP, "install", "--quiet", "--dry-run", "--report", "-", "-c", str(constraints), wanted]
    answer = subprocess.run(ask, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"pip finds no {wanted} for Python {sys.version.split()[0]} (its message is above)")
    if brings_cuda(json.loads(answer.stdout)):
        return [
            "--no-deps",
            "--index-url",
            CPU_BUILDS,
            wanted,
        ]  # what torch needs comes with llmos, from pip's usual index
    return ["-c", str(constraints), wanted]


def installed_torch() -> tuple[str, str | None] | None:
    """The installed torch's version without local part, and its CUDA version; None if there is no torch."""
    try:
        torch = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return None
    facts = runpy.run_path(str(torch.locate_file("torch/version.py")))  # importing torch takes seconds
    return torch.version.partition("+")[0], facts["cuda"]


def pip_install(arguments: list[str]) -> None:
    """Run `pip install`, saying so on stderr. Raises SystemExit when it fails."""
    print("pip install", *arguments, file=sys.stderr, flush=True)
    if subprocess.run([*_PIP, "install", "--quiet", "--no-compile", *arguments], check=False).returncode:
        raise SystemExit("pip failed (its message is above); nothing else was changed")


def compile_modules() -> None:
    """Compile what was installed, on all cores: pip would do it on one.

    Files that are no Python of this version (templates, tests of other versions) stay as they are.
    """
    compile_all = [sys.executable, "-m", "compileall", "-qq", "-j", "0", sysconfig.get_path("purelib")]
    subprocess.run(compile_all, check=False)


def main(argv: list[str] | None = None) -> None:
    """Install ``argv``'s target into the environment of this interpreter. Raises SystemExit when that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="`.`, `.[dev]` or a wheel")
    parser.add_argument("-e", "--editable", action="store_true", help="link to the tree instead of copying it")
    parser.add_argument("-c", "--constraints", type=Path, default=CONSTRAINTS, help="the tested versions")
    options = parser.parse_args(argv)
    gpu, version = has_gpu(), pinned("torch", options.constraints)
    if not gpu and installed_torch() != (version, None):
        pip_install(torch_arguments(version, options.constraints))
    pip_install(["-c", str(options.constraints), *(["-e"] if options.editable else []), options.target])
    compile_modules()
    torch = installed_torch()
    if not gpu and torch and torch[1]:
        raise SystemExit(f"torch {version} for CUDA {torch[1]} was installed on a machine without a GPU; report this")


if __name__ == "__main__":
    main()
