"""What an encoder is asked, and what its two sides tell each other: tokens in, vectors out. Plain values; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmos.errors import LlmosError, UsageError

Vectors = npt.NDArray[np.float32]
"""[N, D]: a row for each text."""

Text = tuple[int, ...]
"""The tokens of a text, with those that stand around it."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts whose vectors are wanted. ``id`` is the caller's, unique among the requests an engine works on.

    ``tenant`` is who asks: waiting texts take turns between tenants, in the ratio of their ``weight``, and
    between the ``user`` s of one. Those of a higher ``priority`` go first. ``deadline_s`` counts from submission; what
    is not complete by then ends with DeadlineError.
    """

    id: str
    texts: tuple[Text, ...]
    tenant: str = ""
    user: str = ""
    priority: int = 0
    weight: float = 1.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        for name, value, right in (
            ("weight", self.weight, 0 < self.weight < math.inf),
            ("deadline_s", self.deadline_s, self.deadline_s is None or 0 < self.deadline_s < math.inf),
        ):
            if not right:
                raise UsageError(f"`{name}` is {value}: expected a number above 0", param=name)


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """The same for the core. ``id`` is never used again; ``arrived`` and ``deadline`` are of ``time.monotonic()``."""

    id: str
    texts: tuple[Text, ...]
    arrived: float
    tenant: str = ""
    user: str = ""
    priority: int = 0
    weight: float = 1.0
    deadline: float | None = None


class Encoded(NamedTuple):
    """What a request comes to: the vectors of all its texts, or an error."""

    id: str
    vectors_ND: Vectors | None = None
    error: LlmosError | None = None
