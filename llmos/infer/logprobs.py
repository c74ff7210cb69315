"""How likely the model found the tokens, for those who ask."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llmos.infer.request import TokenLogprob
from llmos.infer.row import Row


class Logprobs:
    """Of the rows that ask for them; made before the logits are edited."""

    def __init__(self, rows: Sequence[Row], logits_LV: Tensor) -> None:
        wanted = [row for row in rows if row.state.params.logprobs is not None]
        self._place = {row.number: place for place, row in enumerate(wanted)}
        if wanted:
            self._logprobs_RV = logits_LV[list(self._place)].log_softmax(dim=-1)
            most = max(row.state.params.logprobs or 0 for row in wanted)
            tops = self._logprobs_RV.topk(min(most, logits_LV.shape[1]), dim=-1)
            self._tokens, self._values = tops.indices.tolist(), tops.values.tolist()

    def of(self, row: Row, token: int) -> tuple[TokenLogprob, ...]:
        """One entry for ``token``, the choice of ``row``; none unless the row asks."""
        asked = row.state.params.logprobs
        if asked is None:
            return ()
        place = self._place[row.number]
        pairs = zip(self._tokens[place][:asked], self._values[place][:asked], strict=True)
        top = tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
        return (TokenLogprob(token, float(self._logprobs_RV[place, token]), top),)
