"""vLLM keeps what every engine promises."""

from tests.unit.infer.contract import *  # noqa: F403
