"""How a model's weights are quantized, as `quantization_config` of its config.json says it. No torch here.

The layout is that of compressed-tensors (https://github.com/vllm-project/compressed-tensors), which transformers and
vLLM read. Linears are quantized symmetrically: w = value · scale, the values whole numbers of 4 or 8 bits. Targets say
which of several schemes is for which linears. Embeddings and norms stay as they were.
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
LINEAR = "Linear"
"""The target that is every linear."""
_METHOD = "compressed-tensors"
_MIXED = "mixed-precision"
_PATTERN = "re:"


@dataclass(frozen=True, slots=True)
class Scheme:
    """Symmetric weights of ``bits`` bits; a scale for each ``group`` columns of a row, or (0) for the whole row.

    ``packed``: how they are stored.
    """

    bits: int
    group: int = 0
    packed: bool = True

    def __str__(self) -> str:
        """``int4 in groups of 128``, ``int8 by channel``."""
        return f"int{self.bits} " + (f"in groups of {self.group}" if self.group else "by channel")

    def groups(self, columns: int) -> int:
        """Scales of a row. Raises ModelError unless the groups divide its ``columns``."""
        if self.group and columns % self.group:
            what = f"groups of {self.group} columns do not divide rows of {columns}"
            raise ModelError(what, hint="Quantize it with a group size that divides them.", param="group_size")
        return columns // self.group if self.group else 1


@dataclass(frozen=True, slots=True)
class Quantization:
    """``schemes`` by target: the name of a linear, a pattern of names after ``re:``, or LINEAR.

    ``ignore``: such names and patterns of linears that are not quantized, whatever the targets say.
    """

    schemes: Mapping[str, Scheme]
    ignore: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``int8 by channel``, ``int4 in groups of 64, lm_head int8 by channel``."""
        if len(set(self.schemes.values())) == 1:
            return str(next(iter(self.schemes.values())))
        return ", ".join(str(s) if target == LINEAR else f"{target} {s}" for target, s in self.schemes.items())

    def scheme(self, linear: str) -> Scheme | None:
        """How the linear of that name (``model.layers.0.mlp.down_proj``) is quantized; None if it is not.

        A name goes before a pattern, and a pattern before LINEAR; of two patterns, the first in the alphabet.
        """
        if any(_matches(pattern, linear) for pattern in self.ignore):
            return None
        targets = sorted(self.schemes, key=lambda target: (target == LINEAR, target.startswith(_PATTERN), target))
        return next((self.schemes[target] for target in targets if _matches(target, linear)), None)

    @property
    def widest_group(self) -> int:
        """The most columns that share a scale, where not the whole row does; 0: none do."""
        return max(scheme.group for scheme in self.schemes.values())

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
        for name in ("output_activations", "kv_cache_scheme"):
            _check(name, whole.get(name), (None,))
        groups = _object("config_groups", whole.get("config_groups"))
        if not groups:
            raise _wrong("config_groups", "{}", "at least one group")
        schemes = dict[str, Scheme]()
        for found_group in groups.values():
            group = _object("config_groups.*", found_group)
            schemes |= dict.fromkeys(_targets(group.get("targets")), _scheme(group, whole.get("format")))
        ignore = whole.get("ignore")
        return cls(schemes, () if ignore is None else _patterns("ignore", ignore))

    def to_hf(self) -> dict[str, Any]:
        """`quantization_config` (JSON), as compressed-tensors writes it: a group for each scheme."""
        schemes = list(dict.fromkeys(self.schemes.values()))
        targets = [[target for target, other in self.schemes.items() if other == scheme] for scheme in schemes]
        kinds = list(dict.fromkeys(_format(scheme) for scheme in schemes))
        pairs = enumerate(zip(schemes, targets, strict=True))
        return {
            "quant_method": _METHOD,
            "format": kinds[0] if len(kinds) == 1 else _MIXED,
            "quantization_status": "compressed",
            "config_groups": {f"group_{at}": _scheme_to_hf(scheme, names) for at, (scheme, names) in pairs},
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
        }


def _format(scheme: Scheme) -> str:
    return PACKED if scheme.packed else PLAIN


def _scheme_to_hf(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights = {
        **{"num_bits": scheme.bits, "type": "int", "symmetric": True, "dynamic": False},
        **{"strategy": "group" if scheme.group else "channel", "group_size": scheme.group or None},
    }
    inputs = {"input_activations": None, "output_activations": None}
    return {"targets": targets, "weights": weights, **inputs, "format": _format(scheme)}


def _scheme(found: Mapping[str, Any], default_format: object) -> Scheme:
    """Of one of `config_groups`; `format` may also be that of all."""
    kind = found.get("format") or default_format
    _check("format", kind, (PACKED, PLAIN))
    _check_activations(found.get("input_activations"))
    _check("output_activations", found.get("output_activations"), (None,))
    bits, group = _weights(_object("weights", found.get("weights")))
    if kind == PLAIN:
        _check("num_bits", bits, (8,))
    return Scheme(bits, group, kind == PACKED)


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


def _targets(found: object) -> tuple[str, ...]:
    """Classes other than ``Linear`` would be of modules that are not read in this form: embeddings, experts."""
    names = _patterns("targets", found)
    known = [name in (LINEAR, OUTPUT) or name.startswith(_PATTERN) or "." in name for name in names]
    if not names or not all(known):
        expected = f"`{LINEAR}`, names of linears, or patterns after `{_PATTERN}`"
        raise _wrong("targets", json.dumps(names)[:80], expected)
    return names


def _patterns(field: str, found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _wrong(field, json.dumps(found, default=str)[:80], "a list of names")
    for name in found:
        if name.startswith(_PATTERN):
            try:
                re.compile(name.removeprefix(_PATTERN))
            except re.error as error:
                expected = f"a regular expression after `{_PATTERN}` ({error})"
                raise _wrong(field, json.dumps(name)[:80], expected) from error
    return tuple(found)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith(_PATTERN):
        return bool(re.match(pattern.removeprefix(_PATTERN), name))
    return pattern in (name, LINEAR)


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
