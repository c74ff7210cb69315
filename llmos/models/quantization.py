"""How a model's weights are quantized, as `quantization_config` of its config.json says it. No torch here.

The layout is that of compressed-tensors (https://github.com/vllm-project/compressed-tensors), which transformers and
vLLM read. The linears of the layers are quantized symmetrically: w = value · scale, the values whole numbers of 4 or 8
bits. Embeddings, norms and the output matrix stay as they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.errors import ModelError
from llmos.files import read_json

PACKED, PLAIN = "pack-quantized", "int-quantized"
"""Formats: values packed into int32 (``weight_packed``, ``weight_shape``), or int8 as they are (``weight``)."""

OUTPUT = "lm_head"
_METHOD = "compressed-tensors"


@dataclass(frozen=True, slots=True)
class Quantization:
    """Symmetric weights of ``bits`` bits; a scale for each ``group`` columns of a row, or (0) for the whole row.

    ``packed``: how they are stored. ``ignore``: names of linears that are not quantized, or patterns after ``re:``.
    """

    bits: int
    group: int = 0
    packed: bool = True
    ignore: tuple[str, ...] = (OUTPUT,)

    def __str__(self) -> str:
        """``int4 in groups of 128``, ``int8 by channel``."""
        return f"int{self.bits} " + (f"in groups of {self.group}" if self.group else "by channel")

    def covers(self, linear: str) -> bool:
        """Whether the linear of that name (``model.layers.0.mlp.down_proj``) is quantized."""
        return not any(_matches(pattern, linear) for pattern in self.ignore)

    def groups(self, columns: int) -> int:
        """Scales of a row. Raises ModelError unless the groups divide its ``columns``."""
        if self.group and columns % self.group:
            what = f"groups of {self.group} columns do not divide rows of {columns}"
            raise ModelError(what, hint="Quantize it with a group size that divides them.", param="group_size")
        return columns // self.group if self.group else 1

    @classmethod
    def load(cls, directory: str | Path) -> Quantization | None:
        """Of the model in ``directory``; None for weights in plain floats. Raises ModelError as :meth:`from_hf`."""
        path = Path(directory) / "config.json"
        try:
            found = read_json(path)
            return cls.from_hf(found.get("quantization_config") if isinstance(found, dict) else None)
        except ModelError as error:
            raise ModelError(f"{path}: {error.message}", hint=error.hint, param=error.param) from error
        except (ValueError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}", hint="Copy the model again.") from error

    @classmethod
    def from_hf(cls, found: object) -> Quantization | None:
        """From `quantization_config` of a config.json; None for None. Raises ModelError for what is not supported."""
        if found is None:
            return None
        whole = _object("quantization_config", found)
        _check("quant_method", whole.get("quant_method"), (_METHOD,))
        groups = list(_object("config_groups", whole.get("config_groups")).values())
        if len(groups) != 1:
            raise _wrong("config_groups", f"{len(groups)} groups", "one, for all linears")
        scheme = _object("config_groups.*", groups[0])
        _check("targets", scheme.get("targets"), (["Linear"],))
        kind = scheme.get("format") or whole.get("format")
        _check("format", kind, (PACKED, PLAIN))
        _check_activations(scheme.get("input_activations"))
        for name in ("output_activations", "kv_cache_scheme"):
            _check(name, scheme.get(name) or whole.get(name), (None,))
        bits, group = _weights(_object("weights", scheme.get("weights")))
        if kind == PLAIN:
            _check("num_bits", bits, (8,))
        return cls(bits, group, kind == PACKED, _ignore(whole.get("ignore")))

    def to_hf(self) -> dict[str, Any]:
        """`quantization_config` (JSON), as compressed-tensors writes it."""
        weights = {
            **{"num_bits": self.bits, "type": "int", "symmetric": True, "dynamic": False},
            **{"strategy": "group" if self.group else "channel", "group_size": self.group or None},
        }
        kind = PACKED if self.packed else PLAIN
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": _METHOD,
            "format": kind,
            "quantization_status": "compressed",
            "config_groups": {"group_0": {**scheme, "format": kind}},
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
        }


def _weights(found: Mapping[str, Any]) -> tuple[int, int]:
    """Bits and columns of a group (0: the whole row)."""
    _check("type", found.get("type", "int"), ("int",))
    _check("num_bits", found.get("num_bits"), (4, 8))
    _check("symmetric", found.get("symmetric", True), (True,))
    _check("dynamic", found.get("dynamic", False), (False,))
    _check("actorder", found.get("actorder"), (None, False, "weight", "static"))  # both leave the columns in order
    group = found.get("group_size")
    strategy = found.get("strategy") or ("channel" if group in (None, -1) else "group")
    _check("strategy", strategy, ("channel", "group"))
    if strategy == "channel":
        _check("group_size", group, (None, -1))
        return found["num_bits"], 0
    if not isinstance(group, int) or isinstance(group, bool) or group < 2 or group % 2:
        raise _wrong("group_size", json.dumps(group, default=str)[:80], "a positive even number of columns")
    return found["num_bits"], group


def _check_activations(found: object) -> None:
    """Inputs that are to be rounded to int8 token by token may also stay as they are: that is only more exact."""
    if found is not None:
        _check("input_activations.dynamic", _object("input_activations", found).get("dynamic", False), (True,))


def _ignore(found: object) -> tuple[str, ...]:
    names = [] if found is None else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong("ignore", json.dumps(found, default=str)[:80], "a list of names")
    for name in names:
        if name.startswith("re:"):
            try:
                re.compile(name[3:])
            except re.error as error:
                raise _wrong("ignore", json.dumps(name)[:80], f"a regular expression after `re:` ({error})") from error
    return tuple(names)


def _matches(pattern: str, name: str) -> bool:
    return bool(re.match(pattern[3:], name)) if pattern.startswith("re:") else pattern in (name, "Linear")


def _object(name: str, found: object) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise _wrong(name, json.dumps(found, default=str)[:80], "an object")
    return found


def _check(name: str, found: object, allowed: tuple[object, ...]) -> None:
    if not any(found == value and isinstance(found, bool) == isinstance(value, bool) for value in allowed):
        expected = " or ".join(json.dumps(value) for value in allowed)
        raise _wrong(name, json.dumps(found, default=str)[:80], expected)


def _wrong(name: str, found: str, expected: str) -> ModelError:
    what = f"`quantization_config`: `{name}` is {found}: expected {expected}"
    hint = "Quantize the original model with `llmos compress`, or use it as it is."
    return ModelError(what, hint=hint, param="quantization_config")
