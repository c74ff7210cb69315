"""Quantizing the weights of a model, without data, one matrix at a time.

int8 has a scale for each output channel, int4 one for each group of columns of it; the output matrix gets int8 in both.
The layout is that of compressed-tensors (llmos/models/quantization.py), which vLLM, transformers and our engine read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmos.compress.rounding import round_to_nearest
from llmos.errors import ModelError, UsageError
from llmos.models import ModelConfig, weights
from llmos.models.headers import EMBEDDING, OUTPUT, Header, forms, headers, read, scheme_of
from llmos.models.packed_layout import dequantize, pack, words
from llmos.models.quantization import LINEAR, Quantization, Scheme
from llmos.models.quantization import OUTPUT as HEAD

GROUPS = (128, 64, 32, 16)
"""Columns of an int4 group, the widest first. With scales in bf16, 128 costs 1/8 bit a weight, 32 1/2."""

ROWS = 8192
"""Rows of a matrix that are rounded at a time: an output matrix in float32, several times over, would be gigabytes."""

TINY = 1e-30
"""What the squares of weights that are all zero count as."""

Progress = Callable[[int, int], None]


def quantization_for(
    config: ModelConfig, bits: int, group: int | None = None, *, keep_output: bool = False
) -> Quantization:
    """int8 by channel, or int4 in groups of ``group`` columns; default: the widest of GROUPS that every row allows.

    The output matrix becomes int8 by channel; with ``keep_output`` it stays as it is. It is a target by name: vLLM does
    not count it among the linears. Raises UsageError for a group size that does not divide the rows of every matrix, or
    where there cannot be one.
    """
    scheme = _scheme_for(config, bits, group)
    if keep_output:
        return Quantization({LINEAR: scheme}, ignore=(HEAD,))
    return Quantization({LINEAR: scheme, HEAD: Scheme(8)})


def _scheme_for(config: ModelConfig, bits: int, group: int | None) -> Scheme:
    """Of the linears of the layers."""
    if bits == 8:
        if group is not None:
            raise UsageError("int8 has a scale for each row: expected no group size", param="--group-size")
        return Scheme(8)
    rows = sorted({config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size})
    fitting = [size for size in GROUPS if all(columns % size == 0 for columns in rows)]
    has = f"this model's matrices have rows of {', '.join(map(str, rows))} columns"
    if group is None and not fitting:
        raise UsageError(f"{has}: none of {', '.join(map(str, GROUPS))} divides them all", hint="Use --int8.")
    if group is not None and (group <= 0 or group % 2 or any(columns % group for columns in rows)):
        fit = f"Fit are {', '.join(map(str, fitting))}." if fitting else "Use --int8."
        what = f"a group size of {group}: {has}; expected an even divisor of them all"
        raise UsageError(what, hint=fit, param="--group-size")
    return Scheme(4, group or fitting[0])


@dataclass(frozen=True, slots=True)
class Errors:
    """How far quantized matrices are from the original: root mean squares of the differences over those of the weights.

    ``whole`` is of all matrices together, ``worst`` of the one named ``worst_matrix``.
    """

    whole: float
    worst: float
    worst_matrix: str


def quantize_weights(source: Path, target: Path, quantization: Quantization, progress: Progress) -> Errors:
    """Write config.json and the quantized weights of the model in ``source`` to ``target``, file by file.

    With a scheme for the output matrix, tied embeddings come apart: they stay as they were, and it is one more matrix.
    Of the weights no more than one file of the result and one matrix are in memory. ``progress(done, of)`` counts
    matrices. Raises ModelError for a source that is not a whole, supported model or has weights that are no numbers.
    """
    if (already := Quantization.load(source)) is not None:
        what = f"{source} is quantized already ({already}): expected weights in plain floats"
        raise ModelError(what, hint="Quantize the original model.")
    config = ModelConfig.load(source)
    found, stored = headers(source, config), dict[str, str]()
    if config.tie_embeddings and quantization.scheme(HEAD) is not None:
        config = dataclasses.replace(config, tie_embeddings=False)
        found[OUTPUT], stored[OUTPUT] = found[EMBEDDING], EMBEDDING
    parts = _Parts({name: found[name] for name in forms(config)}, stored, quantization, progress)
    weights.save_weights(config, parts.forms, parts.read, target, quantization=quantization)
    return parts.errors()


class _Parts:
    """What takes the place of each weight: itself, or of a matrix what the layout calls for.

    ``stored`` has the names of weights that the source has under another.
    """

    def __init__(
        self,
        found: Mapping[str, Header],
        stored: Mapping[str, str],
        quantization: Quantization,
        progress: Progress,
    ) -> None:
        self._headers, self._stored, self._progress = found, stored, progress
        schemes = {name: scheme_of(name, header.shape, quantization) for name, header in found.items()}
        self._schemes = {name.removesuffix(".weight"): scheme for name, scheme in schemes.items() if scheme}
        self._squares: dict[str, tuple[float, float]] = {}  # by matrix: of the differences, of the weights
        self.forms = {form: meta for name in found for form, meta in self._forms(name).items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, which :attr:`forms` has."""
        wanted, found = list(names), dict[str, Tensor]()
        for name in wanted:
            if name in self._headers:
                found[name] = read(self._headers[name], name)
            elif name not in found:
                parts = self._quantized(name.rpartition(".")[0])
                found |= {part: tensor for part, tensor in parts.items() if part in wanted}
        return found

    def errors(self) -> Errors:
        """Of the matrices that were read."""
        each = {matrix: math.sqrt(error / max(size, TINY)) for matrix, (error, size) in self._squares.items()}
        worst = max(each, key=lambda matrix: each[matrix])
        error, size = (sum(values) for values in zip(*self._squares.values(), strict=True))
        return Errors(math.sqrt(error / max(size, TINY)), each[worst], worst)

    def _forms(self, name: str) -> dict[str, Tensor]:
        header, matrix = self._headers[name], name.removesuffix(".weight")
        if (scheme := self._schemes.get(matrix)) is None:
            return {name: torch.empty(header.shape, dtype=header.dtype, device="meta")}
        rows, columns = header.shape
        shapes = {
            "weight_packed": ((rows, words(columns, scheme.bits)), torch.int32),
            "weight_scale": ((rows, scheme.groups(columns)), header.dtype),
            "weight_shape": ((2,), torch.int64),
        }
        return {f"{matrix}.{part}": torch.empty(s, dtype=d, device="meta") for part, (s, d) in shapes.items()}

    def _quantized(self, matrix: str) -> dict[str, Tensor]:
        name, scheme = f"{matrix}.weight", self._schemes[matrix]
        header = self._headers[name]
        weight_OI = read(header, self._stored.get(name, name))
        parts, errors, sizes = list[tuple[Tensor, Tensor]](), 0.0, 0.0
        for some_OI in (rows.float() for rows in weight_OI.split(ROWS)):
            if not some_OI.isfinite().all():
                what = f"{header.path}: {name} has weights that are no numbers (NaN or infinite)"
                raise ModelError(f"{what}; expected finite ones", hint="Use an earlier checkpoint of the model.")
            values_OI, scale_OG = round_to_nearest(some_OI, scheme.bits, scheme.group, header.dtype)
            errors += (dequantize(values_OI, scale_OG) - some_OI).square().sum().item()
            sizes += some_OI.square().sum().item()
            parts.append((pack(values_OI, scheme.bits), scale_OG))
        self._squares[matrix] = errors, sizes
        self._progress(len(self._squares), len(self._schemes))
        packed_OW, scale_OG = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        found = {"weight_packed": packed_OW, "weight_scale": scale_OG, "weight_shape": torch.tensor(header.shape)}
        return {f"{matrix}.{part}": tensor for part, tensor in found.items()}
