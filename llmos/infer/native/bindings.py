"""The native step's functions, by ctypes: the GIL is released while one of them runs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from llmos.errors import EngineError, OutOfMemoryError
from llmos.infer.native.build import build


class Shape(Structure):
    """``model.h``'s Shape, field for field."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "features")),
        *((name, c_int32) for name in ("vocabulary", "window", "blocks", "cache_bits", "positions")),
        ("eps", c_float),
    )


class Request(Structure):
    """``step.h``'s Request, field for field."""

    _fields_ = (
        *((name, c_int32) for name in ("tokens", "sequences", "logits", "row_blocks")),
        *((name, c_int32) for name in ("first_half", "last_half", "embed", "keep", "threads")),
        *((name, c_void_p) for name in ("token_N", "position_N", "start_S", "block_SM", "logits_at_L")),
        *((name, c_void_p) for name in ("hidden", "logits_out")),
    )


_FUNCTIONS: dict[str, tuple[type, tuple[Any, ...]]] = {
    "llmos_instructions": (c_char_p, ()),
    "llmos_create": (c_int, (POINTER(Shape), c_void_p, c_void_p, POINTER(c_void_p))),
    "llmos_destroy": (c_void_p, (c_void_p,)),
    "llmos_vector": (c_int, (c_void_p, c_int, c_int, c_void_p, c_int)),
    "llmos_embedding": (c_void_p, (c_void_p, c_void_p, c_int)),
    "llmos_matrix": (c_int, (c_void_p, c_int, c_int, c_void_p, c_void_p, *[c_int] * 5)),
    "llmos_cache_bytes": (c_int64, (c_void_p,)),
    "llmos_weight_bytes": (c_int64, (c_void_p,)),
    "llmos_run": (c_int, (c_void_p, POINTER(Request))),
    "llmos_read": (c_double, (c_void_p, c_int64, c_int)),
}


class Library:
    """An attribute ``name`` is ``llmos_name`` of the file at ``path``. Raises EngineError if it cannot be loaded."""

    def __init__(self, path: Path) -> None:
        try:
            found = ctypes.CDLL(str(path))
        except OSError as error:
            hint = f"Remove {path}: it will be compiled again."
            raise EngineError(f"the native step cannot be loaded: {error}", hint=hint) from error
        self._functions: dict[str, Callable[..., Any]] = {}
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._functions[f"llmos_{name}"]

    @property
    def instructions(self) -> str:
        """Which of the processor's vector instructions it was compiled for."""
        return bytes(self._functions["llmos_instructions"]()).decode()


@cache
def native_step() -> Library:
    """The one of this machine, compiled if need be. Raises EngineError with the reason if there can be none."""
    return Library(build())


def check(code: int, what: str) -> None:
    """Raises OutOfMemoryError unless ``code``, a result of the library, is 0."""
    if code:
        hint = "Use a smaller model, quantized weights, or less memory for the key-value cache."
        raise OutOfMemoryError(f"there is not enough memory for {what}", hint=hint)
