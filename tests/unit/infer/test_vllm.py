"""vLLM as an engine, where vLLM is not: `make test-vllm` has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.errors import UsageError
from llmos.infer import vllm
from llmos.infer.messages import CoreRequest
from llmos.infer.options import EngineOptions
from llmos.infer.request import SamplingParams
from llmos.infer.vllm import VllmEngine
from llmos.infer.vllm_request import engine_arguments, outcome_of, prompt_for


def test_without_vllm_the_error_says_what_to_install(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="vLLM is not installed") as caught:
        VllmEngine(model_dir)
    assert "pip install 'llmos[vllm]'" in caught.value.hint and caught.value.param == "engine"


def test_what_vllm_cannot_do_is_refused() -> None:
    with pytest.raises(UsageError, match="`speculative` is not for `engine: vllm`"):
        engine_arguments(EngineOptions("model", speculative=3))


def test_options_are_vllms_arguments() -> None:
    told = engine_arguments(EngineOptions("model", dtype="float32", context_length=99, max_batch=3, tp=2, pp=4))
    assert (told["model"], told["dtype"], told["max_model_len"], told["max_num_seqs"]) == ("model", "float32", 99, 3)
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"]) == (2, 4)


def _request(tenant: str = "", **sampling: object) -> CoreRequest:
    return CoreRequest("0", (1, 2), SamplingParams(**sampling), 0, 10, frozenset(), 0.0, tenant)  # type: ignore[arg-type]


def test_only_a_tenants_own_prompts_are_found_in_the_cache() -> None:
    assert prompt_for(_request("ada")) == {"prompt_token_ids": [1, 2], "cache_salt": "ada"}
    assert prompt_for(_request()) == {"prompt_token_ids": [1, 2]}


class _Logprob:
    def __init__(self, rank: int, logprob: float) -> None:
        self.rank, self.logprob = rank, logprob


class _Output:
    token_ids = (7,)
    finish_reason: str | None = "length"
    logprobs = ({7: _Logprob(9, -5.0), 3: _Logprob(2, -2.0), 4: _Logprob(1, -1.0)},)


def test_the_chosen_token_is_not_among_the_likeliest_unless_it_is_one() -> None:
    (found,) = outcome_of(_request(logprobs=2), _Output()).logprobs
    assert (found.token, found.logprob, found.top) == (7, -5.0, ((4, -1.0), (3, -2.0)))
    (bare,) = outcome_of(_request(logprobs=0), _Output()).logprobs
    assert bare.top == ()
    assert outcome_of(_request(), _Output()).reason == "length"


def test_an_answer_that_vllm_gives_up_is_an_error() -> None:
    output = _Output()
    output.finish_reason = "abort"
    assert "ended the request with `abort`" in str(outcome_of(_request(), output).error)
