"""Our options and requests in vLLM's words, and its output in ours."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import torch

from llmos.errors import EngineError, UsageError
from llmos.infer.dtypes import pick_dtype
from llmos.infer.messages import CoreRequest, Outcome
from llmos.infer.options import EngineOptions
from llmos.infer.request import Grammar, TokenLogprob

_SMALLEST_TOP_P = 1e-6  # vLLM refuses 0, which keeps the likeliest token, as this does
_FINISHED = ("stop", "length")


def engine_arguments(options: EngineOptions) -> dict[str, Any]:
    """What AsyncEngineArgs is made with. Raises UsageError for an option that means nothing to vLLM."""
    if options.speculative:
        what = "`speculative` is not for `engine: vllm`: expected 0"
        raise UsageError(what, hint="Leave it out, or use our own engine.", param="speculative")
    return {
        "model": str(options.model_dir),
        "dtype": str(pick_dtype(options.dtype, torch.device(options.device))).removeprefix("torch."),
        "max_model_len": options.context_length,
        "max_num_seqs": options.max_batch,
        "max_num_batched_tokens": options.token_budget,
        "kv_cache_memory_bytes": options.memory_bytes,
        "enable_prefix_caching": options.prefix_cache,
        "tensor_parallel_size": options.tp,
        "pipeline_parallel_size": options.pp,
        "scheduling_policy": "priority",
        "structured_outputs_config": {"backend": "guidance"},  # of which our own grammars are made
        "enforce_eager": options.device == "cpu",  # to compile takes minutes there, and gains little
        "disable_log_stats": True,
    }


def prepare_environment(threads: int) -> None:
    """The settings that vLLM reads when it starts: nothing leaves this machine, and it takes ``threads`` cores."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # replicas share a machine, and the system knows which core is idle
        OMP_NUM_THREADS=str(threads),
    )


def end_tokens(model_config: Any) -> Iterator[int]:
    """The tokens that end a text, as the files of the model say."""
    for settings in (model_config.hf_config.to_dict(), model_config.try_get_generation_config()):
        found = settings.get("eos_token_id")
        yield from found if isinstance(found, list) else [] if found is None else [found]


def sampling_for(request: CoreRequest) -> Any:
    """vLLM's parameters. Raises its own error for what it does not allow. Its seeds have 64 bits: ours are hashed."""
    vllm, asked = import_module("vllm.sampling_params"), request.sampling
    seed = hashlib.blake2b(str(request.seed).encode(), digest_size=7).digest()
    return vllm.SamplingParams(
        max_tokens=request.limit - len(request.prompt),
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=max(asked.top_p, _SMALLEST_TOP_P),
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        seed=None if asked.seed is None else int.from_bytes(seed, "big"),
        stop_token_ids=sorted(asked.ends(request.ends)),
        ignore_eos=asked.ignore_eos,
        min_tokens=asked.min_tokens,
        logit_bias=dict(asked.logit_bias) or None,
        logprobs=asked.logprobs,
        structured_outputs=None if asked.grammar is None else vllm.StructuredOutputsParams(**_grammar(asked.grammar)),
        detokenize=False,
        output_kind=vllm.RequestOutputKind.DELTA,
    )


def _grammar(grammar: Grammar) -> dict[str, Any]:
    """The one argument that says it to vLLM."""
    match grammar.kind:
        case "json_schema":
            return {"json": grammar.text}
        case "json_object":
            return {"json_object": True}
        case "choice":
            return {"choice": json.loads(grammar.text)}
        case "regex":
            return {"regex": grammar.text}
        case "lark":
            return {"grammar": grammar.text}


def prompt_for(request: CoreRequest) -> dict[str, Any]:
    """What vLLM reads. The salt keeps a tenant from finding others' prompts in the prefix cache."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt)}
    return {**prompt, "cache_salt": request.tenant} if request.tenant else prompt


def outcome_of(request: CoreRequest, output: Any, cached: int = 0) -> Outcome:
    """One CompletionOutput: more tokens, and why it is over if it is. ``cached`` tokens of the prompt were there."""
    reason = output.finish_reason
    if reason is not None and reason not in _FINISHED:
        return Outcome(request.id, error=EngineError(f"vLLM ended the request with `{reason}`"))
    asked = request.sampling.logprobs
    found = () if asked is None else zip(output.token_ids, output.logprobs, strict=True)
    logprobs = [_logprob(token, ranked, asked or 0) for token, ranked in found]
    return Outcome(request.id, tuple(output.token_ids), logprobs, reason, None, cached)


def _logprob(token: int, found: Mapping[int, Any], asked: int) -> TokenLogprob:
    """vLLM gives the chosen token beside the ``asked`` likeliest, of which it may be one; ranks begin with 1."""
    ranked = sorted((one.rank, other, one.logprob) for other, one in found.items())
    return TokenLogprob(token, found[token].logprob, tuple((other, logprob) for _, other, logprob in ranked[:asked]))
