"""Tokens drawn from logits: temperature, top-k, top-p and min-p, then the inverse of the cumulative distribution.

On a CPU, whole rows are never sorted: filters first bound how likely a token must be, which leaves some hundred
candidates of a peaked distribution. (``torch.sort`` of 64 rows of 49,152 tokens takes half a second on one core.)
Elsewhere everything stays on the device, and all rows are sorted at once. Both keep the same tokens.

Rows do not change each other's results, not even in the last bit: a seed's answer must not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmos.infer.request import SamplingParams

Floats = NDArray[np.float32]

CHUNK = 64
"""Tokens of a vocabulary that are looked at together, to find those worth looking at one by one."""

MANY = 4096
"""With more candidates, the whole row is looked at again, by chunks."""

_ONES = np.ones(CHUNK, dtype=np.float32)


def draw(logits_LV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """A token for each row; ``uniforms`` are in [0, 1). ``logits_LV`` (float32, finite maxima) is overwritten.

    Of equally likely tokens at the end of what filters keep, all are kept. Top-p (arXiv 1904.09751) is of what top-k
    leaves; min-p (arXiv 2407.01082) is of the likeliest.
    """
    scale_L1 = torch.tensor([[1 / one.temperature] for one in params], device=logits_LV.device)
    p_LV = torch.softmax(logits_LV.mul_(scale_L1), dim=-1)
    if p_LV.device.type != "cpu":
        return draw_sorted(p_LV, params, uniforms)
    rows = zip(p_LV.numpy(), params, uniforms, strict=True)
    return [_draw(p_V, one, uniform) for p_V, one, uniform in rows]


def draw_sorted(p_LV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """The same from probabilities, without a loop over the rows."""
    vocabulary, device = p_LV.shape[1], p_LV.device
    least_L1 = p_LV.amax(-1, keepdim=True) * torch.tensor([[one.min_p] for one in params], device=device)
    if any(_cuts(one, vocabulary) for one in params):
        tops = [[min(one.top_k or vocabulary, vocabulary) - 1] for one in params]
        last_L1, share_L1 = _column(tops, torch.long, device), _column([[one.top_p] for one in params], None, device)
        sorted_LV = p_LV.sort(dim=-1, descending=True).values
        sums_LV = sorted_LV.cumsum(-1, dtype=torch.float64)
        wanted_L1 = share_L1 * sums_LV.gather(1, last_L1)
        last_L1 = torch.minimum(last_L1, (sums_LV < wanted_L1).sum(-1, keepdim=True))
        least_L1 = torch.maximum(least_L1, sorted_LV.gather(1, last_L1))
    sums_LV = p_LV.masked_fill(p_LV < least_L1, 0).cumsum(-1, dtype=torch.float64)
    total_L1 = sums_LV[:, -1:]
    at_L1 = torch.minimum(_column([[u] for u in uniforms], None, device) * total_L1, total_L1.nextafter(total_L1 * 0))
    found: list[int] = torch.searchsorted(sums_LV, at_L1, right=True)[:, 0].tolist()
    return found


def _column(values: Sequence[Sequence[float]], dtype: torch.dtype | None, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype or torch.float64, device=device)


def _cuts(params: SamplingParams, vocabulary: int) -> bool:
    """Whether top-k or top-p may leave a token out."""
    return params.top_p < 1 or 0 < params.top_k < vocabulary


def _draw(p_V: Floats, params: SamplingParams, uniform: float) -> int:
    bound = _bound(p_V, params)
    if bound == 0 and not _cuts(params, len(p_V)):
        return _find_in_row(p_V, uniform)
    tokens = np.flatnonzero(p_V >= bound)
    p_C = p_V[tokens]
    if _cuts(params, len(p_V)):
        least = _least_of_top_k(p_C, params) if params.top_k else _least_of_top_p(p_C, params.top_p)
        if len(tokens) > MANY:
            return _find_in_row(p_V * (p_V >= least), uniform)
        kept = p_C >= least
        tokens, p_C = tokens[kept], p_C[kept]
    return int(tokens[_find(p_C, uniform)])


def _bound(p_V: Floats, params: SamplingParams) -> float:
    """No token less likely than this is kept.

    Tokens below (1 - top-p) / V have less than 1 - top-p together, so the others have enough. The k-th of the chunks'
    maxima is at most the k-th of all.
    """
    bound = params.min_p * float(p_V.max()) if params.min_p else 0.0
    chunks = len(p_V) // CHUNK
    if 0 < params.top_k <= chunks:
        maxima = p_V[: chunks * CHUNK].reshape(chunks, CHUNK).max(axis=1)
        bound = max(bound, float(np.partition(maxima, -params.top_k)[-params.top_k]))
    elif params.top_k == 0 and params.top_p < 1:
        bound = max(bound, (1 - params.top_p) / len(p_V))
    return bound


def _least_of_top_k(p_C: Floats, params: SamplingParams) -> float:
    """How likely a candidate must be to be of the top k, and of their top-p."""
    kept = np.sort(p_C)[::-1][: params.top_k]
    if params.top_p < 1:
        sums = kept.cumsum(dtype=np.float64)
        kept = kept[: np.searchsorted(sums, params.top_p * sums[-1]) + 1]
    return float(kept[-1])


def _least_of_top_p(p_C: Floats, top_p: float) -> float:
    """How likely a candidate must be to be one of the fewest that have ``top_p`` together.

    Candidates are counted in bins of nearly the same probability (the bits of a float32 grow with it), and only the bin
    in which the sum gets there is sorted.
    """
    bins = p_C.view(np.int32) >> 16  # the exponent, and 7 bits of the fraction
    bins -= bins.min()
    sums = np.bincount(bins, weights=p_C)[::-1].cumsum()
    crossing = min(int(np.searchsorted(sums, top_p)), len(sums) - 1)
    before = float(sums[crossing - 1]) if crossing else 0.0
    inside = np.sort(p_C[bins == len(sums) - 1 - crossing])[::-1]
    return float(inside[: np.searchsorted(inside.cumsum(dtype=np.float64), top_p - before) + 1][-1])


def _find_in_row(p_V: Floats, uniform: float) -> int:
    """The token at ``uniform`` of the cumulative distribution: first its chunk, then its place there."""
    chunks = len(p_V) // CHUNK
    sums = p_V[: chunks * CHUNK].reshape(chunks, CHUNK) @ _ONES
    sums = np.append(sums, p_V[chunks * CHUNK :].sum()).cumsum(dtype=np.float64)
    at = min(uniform * sums[-1], np.nextafter(sums[-1], 0))
    chunk = int(np.searchsorted(sums, at, side="right"))
    inside = p_V[chunk * CHUNK :][:CHUNK]
    found = np.searchsorted(inside.cumsum(dtype=np.float64), at - (sums[chunk - 1] if chunk else 0), side="right")
    # A chunk's sum, rounded to float32, may be above that of its tokens: then its last possible token is meant.
    return chunk * CHUNK + int(min(found, np.flatnonzero(inside)[-1]))


def _find(p_C: Floats, uniform: float) -> int:
    """The index at ``uniform`` of the cumulative distribution of what is left; probabilities of 0 are never found."""
    possible = np.flatnonzero(p_C)
    sums = p_C[possible].cumsum(dtype=np.float64)
    return int(possible[np.searchsorted(sums[:-1], uniform * sums[-1], side="right")])
