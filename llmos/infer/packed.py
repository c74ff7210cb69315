"""Matrix products with weights packed once, in the form that is fastest on the device.

Measured on two cores of an AMD EPYC, the linears of a 135 M model (30 layers of 576 features), ms a step at 1 / 8 / 32
tokens: with AVX512-BF16, torch's own bf16 product 19 / 22 / 38, oneDNN's packed 13 / 14 / 29. With AVX2 only (one core,
CPU time), torch's bf16 37 / 203 / 812 and fp32 69 / 166 / 337, FBGEMM's fp16 weights 38 / 71 / 152: fp16 has all the
bits of bf16 for weights from 6e-5 to 65504, and inputs stay fp32 there. torch's int8 and int4 products take bf16
inputs; with fp32 ones they took ten times as long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.infer.shard import Matrix
from llmos.models.packed_layout import dequantize

_ONEDNN = torch.ops.mkldnn
_INT4_GROUPS, _INT4_ROWS = (32, 64, 128, 256), 16
"""What torch's int4 product can do."""
_FP16_LARGEST = 65504.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Product:
    """x [N, in] → x · wᵀ + bias [N, out], in the type of :func:`activation_dtype`; what computes it, and its memory.

    ``copied``: whether the weights were, so that those it was made from can go.
    """

    multiply: Callable[[Tensor], Tensor]
    kernel: str
    size_bytes: int
    copied: bool = True


def activation_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What products of a model in ``dtype`` take and give: float32 on CPUs that do not multiply bfloat16."""
    return dtype if device.type != "cpu" or _bf16_instructions() else torch.float32


def pack(matrix: Matrix, bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> Product:
    """A product with ``matrix`` of a model in ``dtype``, on ``device``. What it needs of ``matrix`` it copies or keeps.

    Quantized matrices without a fast product here are computed as plain ones of ``dtype``: a log line says so.
    """
    active, original = activation_dtype(dtype, device), matrix.weight
    bias = None if bias is None else bias.to(device, active)
    if matrix.bits in (4, 8):
        quantized = dtype is torch.bfloat16 and device.type == "cpu"
        if quantized and matrix.bits == 8:
            return _int8(matrix, bias, active)
        if quantized and matrix.group in _INT4_GROUPS and len(matrix.weight) % _INT4_ROWS == 0:
            return _int4(matrix, bias, active)
        _say_dequantized(matrix.bits, matrix.group, str(dtype).removeprefix("torch."), device.type)
        matrix = _plain(matrix, dtype)
    weight_OI = matrix.weight.to(device, dtype)
    product = _float(weight_OI, bias, active)
    return replace(product, copied=product.copied or weight_OI is not original)


def _float(weight_OI: Tensor, bias: Tensor | None, active: torch.dtype) -> Product:
    if weight_OI.device.type == "cpu" and weight_OI.dtype is torch.bfloat16:
        if active is torch.bfloat16:
            return _onednn(weight_OI, bias)
        if weight_OI.abs().max() <= _FP16_LARGEST:
            return _fp16(weight_OI, bias)
    if weight_OI.dtype is torch.float32 and weight_OI.device.type == "cpu" and _avx512():
        return _onednn(weight_OI, bias)
    kept_OI, kernel = weight_OI.to(active), f"torch, {str(active).removeprefix('torch.')}"
    copied = kept_OI is not weight_OI
    return Product(lambda x_NI: F.linear(x_NI, kept_OI, bias), kernel, kept_OI.nbytes, copied)


def _onednn(weight_OI: Tensor, bias: Tensor | None) -> Product:
    """Packed for 32 tokens, which is as fast for any number."""
    packed = _ONEDNN._reorder_linear_weight(weight_OI, 32)
    multiply = _ONEDNN._linear_pointwise
    kernel = f"oneDNN, packed {str(weight_OI.dtype).removeprefix('torch.')}"
    return Product(lambda x_NI: multiply(x_NI, packed, bias, "none", [], ""), kernel, weight_OI.nbytes)


def _fp16(weight_OI: Tensor, bias: Tensor | None) -> Product:
    packed = torch.ops.quantized.linear_prepack_fp16(weight_OI.float(), bias)
    multiply = torch.ops.quantized.linear_dynamic_fp16
    return Product(lambda x_NI: multiply(x_NI, packed), "FBGEMM, packed float16", weight_OI.nbytes)


def _int8(matrix: Matrix, bias: Tensor | None, active: torch.dtype) -> Product:
    assert matrix.scale is not None
    weight_OI, scale_O = matrix.weight, matrix.scale.flatten().bfloat16()

    def multiply(x_NI: Tensor) -> Tensor:
        y_NO = torch._weight_int8pack_mm(x_NI.bfloat16(), weight_OI, scale_O).to(active)
        return y_NO if bias is None else y_NO.add_(bias)

    return Product(multiply, "torch, int8 weights", weight_OI.nbytes + scale_O.nbytes, copied=False)


def _int4(matrix: Matrix, bias: Tensor | None, active: torch.dtype) -> Product:
    assert matrix.scale is not None
    stored_OI = torch.stack((matrix.weight & 15, matrix.weight >> 4), dim=-1).flatten(1).to(torch.int32)
    packed: Any = torch._convert_weight_to_int4pack_for_cpu(stored_OI, 1)  # each value is 8 too high, as stored here
    scale_GO = matrix.scale.t().bfloat16()
    scales_GO2 = torch.stack((scale_GO, torch.zeros_like(scale_GO)), dim=-1).contiguous()
    group = matrix.group

    def multiply(x_NI: Tensor) -> Tensor:
        y_NO = torch._weight_int4pack_mm_for_cpu(x_NI.bfloat16(), packed, group, scales_GO2).to(active)
        return y_NO if bias is None else y_NO.add_(bias)

    return Product(multiply, "torch, int4 weights", packed.nbytes + scales_GO2.nbytes)


def _plain(matrix: Matrix, dtype: torch.dtype) -> Matrix:
    assert matrix.scale is not None
    values_OI = matrix.weight
    if matrix.bits == 4:
        values_OI = torch.stack((values_OI & 15, values_OI >> 4), dim=-1).flatten(1).to(torch.int8) - 8
    return Matrix(dequantize(values_OI, matrix.scale).to(dtype), dtype.itemsize * 8)


@cache
def _say_dequantized(bits: int, group: int, dtype: str, device: str) -> None:
    """Once for all matrices."""
    what = f"int{bits}" + (f" in groups of {group}" if group and bits == 4 else "")
    _log.warning("%s weights are computed as %s: there is no fast product for them on %s", what, dtype, device)


@cache
def _bf16_instructions() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _avx512() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
