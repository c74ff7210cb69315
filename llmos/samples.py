"""What a model of code writes when asked, and plain measures of how good it is."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

PROMPTS = (
    "if not isinstance(value, str):\n    raise",
    "def fibonacci(n):",
    "class Stack:\n    def __init__(self):",
    "def read_lines(path):\n    with open(path) as file:",
    "for name in sorted(names):",
    "def is_even(number):\n    return",
    "try:\n    import json\nexcept ImportError:",
    "def main(argv=None):\n    parser = argparse.ArgumentParser(",
)
"""None ends with a line: to the tokenizer a line's end and the indentation after it are one, alone it means none."""
SAMPLING: Mapping[str, Any] = MappingProxyType({"temperature": 0.6, "top_p": 0.8, "frequency_penalty": 0.2})
"""Chosen on a model of 1.68 bits per byte, 96 samples each: 28 parse and no line comes more than 4 times; without the
penalty a line may come 10 times. Of 256 samples of another such model 36 parse, and no line comes more than 5 times."""


def cut(text: str) -> str:
    """``text`` up to its last full line: what follows was cut off by the limit of tokens."""
    return text[: text.rfind("\n") + 1]


def parses(prompt: str, completion: str) -> bool:
    """Whether the prompt with the full lines of the completion is Python. Nothing written is not a success."""
    written = cut(completion)
    if not written.strip():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as SyntaxWarning: "is" with a literal
            ast.parse(prompt + written)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all of them: code that Python does not take
        return False
    return True


def most_repeated(text: str) -> int:
    """How often the most frequent line that is not blank occurs. Degenerate text says the same again and again."""
    lines = Counter(line.strip() for line in text.splitlines() if line.strip())
    return max(lines.values(), default=0)
