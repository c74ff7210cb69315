"""Check the shape of the tree: sizes, who imports whom, where Ray and torch may appear, stubs, docstrings, paths.

    python scripts/check_structure.py [ROOT]       prints one line per problem; exit code 1 if there is one

The rules are the data at the top; docs/architecture.md gives the reasons. It reads syntax trees and imports nothing.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_MEAN_FUNCTION_LINES = 12
SELF_EXPLANATORY_LINES = 5  # a public name of at most so many lines needs no docstring

CODE = ("llmos/", "deployments/", "scripts/")  # what the sizes and docstrings are about; tests are only kept honest

# Part of llmos → the other parts it may import. Imports flow one way: errors ← core, spec; core ← sim, train;
# core, spec ← control ← cli; models ← parallel ← train | infer; models ← compress; train, infer and openai never import
# one another; openai, infer ← front.
COMMON = frozenset({"cores", "errors", "files", "heartbeat", "layout", "redact", "settings", "standby", "usage"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "cores": frozenset(),
    "errors": frozenset(),
    "heartbeat": frozenset(),
    "usage": frozenset(),
    "core": frozenset({"errors"}),
    "spec": frozenset({"errors"}),
    "sim": frozenset({"errors", "core"}),
    "models": COMMON,
    "parallel": COMMON | {"models"},
    "train": COMMON | {"core", "models", "parallel", "spec"},
    "infer": COMMON | {"models", "parallel"},
    "compress": COMMON | {"models"},
    "openai": COMMON,
    "front": COMMON | {"infer", "models", "openai"},
    "control": COMMON | {"core", "models", "spec", "views"},
}
ENTRY_POINT = "__main__.py"  # where parts that do not know each other are put together

LEGAL_ONLY_IN = {
    "ray": (
        *(
            "llmos/control/ray/",
            "llmos/train/worker.py",
            "llmos/train/gang.py",
            "llmos/train/ray_data.py",
            "deployments/",
        ),
        *("tests/ray/", "tests/e2e/", "tests/chaos/"),
        *("benchmarks/ray_train_peer.py", "benchmarks/frontdoor/serve_peer.py"),
    ),
    "torch": (
        *("llmos/models/", "llmos/parallel/", "llmos/train/", "llmos/infer/", "llmos/compress/"),
        *("benchmarks/", "examples/", "tests/"),
    ),
    "llmos.cli": ("llmos/cli/", "tests/"),
    "llmos.sim": (
        "llmos/sim/",
        "llmos/cli/simulate.py",
        "llmos/cli/rehearse.py",
        "llmos/cli/load.py",
        "benchmarks/",
        "tests/",
    ),
    "deployments": ("deployments/", "tests/"),
    "tests": ("tests/",),
}
PURE = {
    "errors": frozenset[str](),
    "core": frozenset({"numpy"}),
    "sim": frozenset({"numpy"}),
}  # besides the standard library

FOREIGN_PATH = re.compile(
    r"(?<![\w.~})])/(?:root|Users|work|home/(?!ubuntu\b|ada\b)\w+)/\w"
)  # ubuntu: on AWS; ada: nobody

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file: its path relative to the root (with `/`), its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> Module:
        return cls(path, text, ast.parse(text, path))

    @property
    def part(self) -> str:
        """`core` for llmos/core/plan.py and for llmos/core.py; empty outside llmos."""
        top, _, rest = self.path.partition("/")
        return rest.partition("/")[0].removesuffix(".py") if top == "llmos" else ""

    @property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    @property
    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of everything imported, at any depth; `from a import b` gives a.b."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def length(node: Function | ast.ClassDef) -> int:
    """Lines of a definition, without its decorators."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def sizes(module: Module) -> Iterator[str]:
    """Files and functions that are too long."""
    if not module.path.startswith(CODE):
        return
    lines = module.text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{module.path}: {lines} lines, at most {MAX_FILE_LINES}: split it by meaning"
    for function in module.functions:
        if length(function) > MAX_FUNCTION_LINES:
            where = f"{module.path}:{function.lineno}: {function.name}"
            yield f"{where} has {length(function)} lines, at most {MAX_FUNCTION_LINES}"


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def homes(module: Module) -> Iterator[str]:
    """Imports of packages that live elsewhere."""
    for line, name in module.imports:
        for package, legal in LEGAL_ONLY_IN.items():
            if _within(name, package) and not module.path.startswith(legal):
                yield f"{module.path}:{line}: imports {name}; `{package}` is legal only in {', '.join(legal)}"


def direction(module: Module) -> Iterator[str]:
    """Imports of parts that are none of the module's business."""
    allowed = MAY_IMPORT.get(module.part)
    if allowed is None or module.path.endswith("/" + ENTRY_POINT):
        return
    for line, name in module.imports:
        part = name.split(".")[1:2]
        if _within(name, "llmos") and part and part[0] not in allowed | {module.part, "__version__"}:
            business = ", ".join(sorted(allowed)) or "nothing"
            yield f"{module.path}:{line}: imports {name}; llmos.{module.part} may import {business} of llmos"


def purity(module: Module) -> Iterator[str]:
    """Third-party imports in the parts that only decide."""
    besides = PURE.get(module.part)
    if besides is None:
        return
    for line, name in module.imports:
        if name.partition(".")[0] not in sys.stdlib_module_names | besides | {"llmos"}:
            yield f"{module.path}:{line}: imports {name}; llmos.{module.part} is pure: only the standard library, numpy"


def stubs(module: Module) -> Iterator[str]:
    """Functions that do nothing, outside of protocols, overloads and abstract methods."""
    if not module.path.startswith(CODE):
        return
    protocols = [
        c for c in ast.walk(module.tree) if isinstance(c, ast.ClassDef) and "Protocol" in map(_last_name, c.bases)
    ]
    excused = {id(member) for protocol in protocols for member in protocol.body}
    for function in module.functions:
        marks = {_last_name(decorator) for decorator in function.decorator_list}
        if id(function) in excused or marks & {"overload", "abstractmethod"}:
            continue
        if all(_does_nothing(statement) for statement in function.body):
            yield f"{module.path}:{function.lineno}: {function.name} does nothing: write it or leave it out"


def _does_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise) and statement.exc is not None:
        return _last_name(statement.exc) == "NotImplementedError"
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _last_name(node: ast.expr) -> str:
    """`c` of a.b.c, a.b.c(…) and a.b.c[…]."""
    match node:
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return _last_name(inner)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def docstrings(module: Module) -> Iterator[str]:
    """Modules, public classes and public functions without a docstring."""
    if not module.path.startswith(CODE) or not module.tree.body:
        return
    if not ast.get_docstring(module.tree):
        yield f"{module.path}: has no docstring"
    for node in module.tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_") or ast.get_docstring(node):
            continue
        if length(node) > SELF_EXPLANATORY_LINES:
            yield f"{module.path}:{node.lineno}: {node.name} is public and has no docstring"


def foreign_paths(path: str, text: str) -> Iterator[str]:
    """Paths that exist only on somebody's machine."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := FOREIGN_PATH.search(line):
            yield f"{path}:{number}: `{found[0]}…` is a path of one machine"


def mean_length(modules: list[Module]) -> Iterator[str]:
    """The mean length of all functions, where it is too long."""
    lengths = [length(f) for module in modules if module.path.startswith(CODE) for f in module.functions]
    if lengths and fmean(lengths) > MAX_MEAN_FUNCTION_LINES:
        yield f"functions have {fmean(lengths):.1f} lines on average, at most {MAX_MEAN_FUNCTION_LINES}"


def problems(files: dict[str, str]) -> list[str]:
    """Everything wrong with ``files`` (path relative to the root → text), sorted."""
    found: list[str] = []
    modules: list[Module] = []
    for path, text in files.items():
        found += foreign_paths(path, text)
        if path.endswith(".py"):
            try:
                modules.append(Module.parse(path, text))
            except SyntaxError as error:
                found.append(f"{path}:{error.lineno}: cannot be parsed: {error.msg}")
    rules = (sizes, homes, direction, purity, stubs, docstrings)
    found += [line for module in modules for rule in rules for line in rule(module)]
    return sorted([*found, *mean_length(modules)])


def tree(root: Path) -> dict[str, str]:
    """Every text file of the tree at ``root`` that git knows or would add: path relative to the root → text."""
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [name for name in names if name and (root / name).is_file()]
    return {path: (root / path).read_text(encoding="utf-8") for path in paths if not path.endswith((".gz", ".png"))}


def main() -> None:
    """Print the problems of the tree at ``sys.argv[1]`` (default: this one)."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    files = tree(root)
    found = problems(files)
    print("\n".join(found) if found else f"the structure of {len(files)} files is sound")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
