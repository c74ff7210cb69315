"""Which layers each stage of a pipeline has."""

from __future__ import annotations


def split_layers(layers: int, stages: int, output_cost: float) -> list[range]:
    """``layers`` for each of ``stages``, at least one each, such that the slowest stage does as little as it can.

    ``output_cost`` is what the last stage does besides, in layers. Of the others, earlier ones may have one more.
    """
    if stages == 1:
        return [range(layers)]

    def slowest(last: int) -> tuple[float, int]:
        return max(-(-(layers - last) // (stages - 1)), last + output_cost), -last

    last = min(range(1, layers - stages + 2), key=slowest)
    rest = layers - last
    starts = [-(-rest * i // (stages - 1)) for i in range(stages)]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], layers], strict=True)]
