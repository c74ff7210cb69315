"""OpenAI's own client against a real server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.unit.infer.small import CONTEXT
from tests.unit.openai.conftest import Served
from tests.unit.openai.world import KEY

ASKED: dict[str, Any] = {"model": "small", "prompt": "def step(", "max_tokens": 24, "extra_body": {"ignore_eos": True}}
CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "Walk?"}], "max_tokens": 24}
SAMPLED = {"temperature": 1.0, "top_p": 0.9, "seed": 11}


def _close_to(values: Any) -> Any:
    """Batches of different sizes round differently."""
    return pytest.approx(values, abs=1e-4)


def test_completions_are_reproducible_and_counted(client: openai.OpenAI) -> None:
    first, again = [client.completions.create(**ASKED, **SAMPLED) for _ in range(2)]
    other = client.completions.create(**{**ASKED, **SAMPLED, "seed": 12})
    assert first.choices == again.choices != other.choices
    assert first.choices[0].finish_reason == "length"
    assert first.id != again.id
    assert (first.object, first.model) == ("text_completion", "small")
    assert first.usage is not None
    assert first.usage.completion_tokens == 24
    assert first.usage.total_tokens == first.usage.prompt_tokens + 24
    assert len(client.completions.create(**{**ASKED, "max_tokens": None}, logprobs=0).choices[0].logprobs.tokens) == 16


@pytest.mark.parametrize("sampling", [{"temperature": 0}, SAMPLED], ids=["greedy", "sampled"])
def test_streamed_completions_are_the_same(client: openai.OpenAI, sampling: dict[str, Any]) -> None:
    whole = client.completions.create(**ASKED, **sampling, logprobs=2, n=2)
    options = {"include_usage": True}
    chunks = list(client.completions.create(**ASKED, **sampling, logprobs=2, n=2, stream=True, stream_options=options))
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts if part.finish_reason] == ["length"]
        for name, values in choice.logprobs.model_dump().items():
            streamed = [value for part in parts for value in getattr(part.logprobs, name)]
            assert streamed == (values if name in ("tokens", "text_offset") else [_close_to(value) for value in values])
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_streamed_chats_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT, **SAMPLED, logprobs=True, top_logprobs=3, n=2)
    chunks = list(client.chat.completions.create(**CHAT, **SAMPLED, logprobs=True, top_logprobs=3, n=2, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert parts[-1].finish_reason == choice.finish_reason
        tokens = [token for part in parts if part.logprobs for token in part.logprobs.content]
        assert [token.bytes for token in tokens] == [token.bytes for token in choice.logprobs.content]
        assert [token.logprob for token in tokens] == [_close_to(token.logprob) for token in choice.logprobs.content]
        assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_answers_of_one_request_are_the_first_ones_of_a_larger_one(client: openai.OpenAI) -> None:
    one = client.completions.create(**ASKED, **SAMPLED)
    three = client.completions.create(**ASKED, **SAMPLED, n=3)
    assert three.choices[0].text == one.choices[0].text
    assert len({choice.text for choice in three.choices}) == 3
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 72


def test_several_prompts_and_tokens_and_echo(served: Served, client: openai.OpenAI) -> None:
    tokens = served.engine.tokenizer.encode("class", add_special_tokens=True)
    alone = [
        client.completions.create(**{**ASKED, "prompt": p}, temperature=0).choices[0].text for p in ("class", "for")
    ]
    both = client.completions.create(**{**ASKED, "prompt": ["class", "for"]}, temperature=0, n=2)
    assert [choice.text for choice in both.choices] == [alone[0], alone[0], alone[1], alone[1]]
    echoed = client.completions.create(**{**ASKED, "prompt": tokens}, temperature=0, echo=True)
    assert echoed.choices[0].text == "class" + alone[0]
    streamed = client.completions.create(**{**ASKED, "prompt": [tokens]}, temperature=0, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "class" + alone[0]
    assert client.completions.create(**{**ASKED, "prompt": ""}, temperature=0).choices[0].finish_reason == "length"


def test_stop_strings(client: openai.OpenAI) -> None:
    full = client.completions.create(**ASKED, **SAMPLED).choices[0].text
    stop = full[8:10]
    for streamed in (False, True):
        found = client.completions.create(**ASKED, **SAMPLED, stop=["never there", stop], stream=streamed)
        parts = [chunk.choices[0] for chunk in found] if streamed else [found.choices[0]]
        assert "".join(part.text for part in parts) == full[: full.index(stop)]
        assert parts[-1].finish_reason == "stop"


def test_parts_of_a_message_and_developers(client: openai.OpenAI) -> None:
    def answer(messages: list[Any]) -> str | None:
        found = client.chat.completions.create(model="small", messages=messages, max_completion_tokens=9, temperature=0)
        return found.choices[0].message.content

    parts = [{"type": "text", "text": "Wal"}, {"type": "text", "text": "k?"}]
    plain = answer([{"role": "system", "content": "Be."}, {"role": "user", "content": "Walk?"}])
    assert answer([{"role": "developer", "content": "Be."}, {"role": "user", "content": parts}]) == plain


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "llmos"
    with pytest.raises(openai.NotFoundError, match="`nobody/there` is not served. Served: `small`") as caught:
        client.models.retrieve("nobody/there")
    assert caught.value.code == "model_not_found"


def test_unknown_models_name_the_known(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="`gpt` is not served. Served: `small`") as caught:
        client.completions.create(model="gpt", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_wrong_keys(served: Served) -> None:
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_prompts_beyond_the_context(client: openai.OpenAI) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match=f"{CONTEXT} tokens, the context {CONTEXT}") as caught:
            client.completions.create(model="small", prompt=[5] * CONTEXT, stream=streamed)
        assert caught.value.code == "context_length_exceeded"


def test_too_many_requests_at_once(served: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:  # 17 answers: 4 rows and 12 places in the queue
        client.completions.create(model="small", prompt=["x"] * 17, max_tokens=200)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert client.completions.create(**ASKED).choices  # nothing of it is left


def test_many_clients_get_what_they_would_get_alone(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        return client.completions.create(**{**ASKED, **SAMPLED, "seed": seed}).choices[0].text

    alone = [text(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(text, range(8))) == alone


@pytest.mark.parametrize("streamed", [True, False])
def test_leaving_cancels_the_request(served: Served, streamed: bool) -> None:
    before = served.engine.stats()["completion_tokens"]
    body = {"model": "small", "prompt": ["x"] * 12, "max_tokens": CONTEXT - 2, "stream": streamed, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=None if streamed else 0.05) as client:
        try:
            with client.stream("POST", "/v1/completions", json=body) as response:
                next(response.iter_lines())
        except httpx.ReadTimeout:
            assert not streamed
    deadline = time.monotonic() + 5
    while (found := served.engine.stats())["running"] or found["waiting"] or found["blocks_free"] < found["blocks"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert served.engine.stats()["completion_tokens"] - before < 12 * (CONTEXT - 2)


def test_health_needs_no_key(served: Served) -> None:
    found = httpx.get(f"{served.url}/healthz")
    assert (found.status_code, found.json()) == (200, {"healthy": True})


def test_every_route_of_the_document_asks_for_a_key(served: Served) -> None:
    document = httpx.get(f"{served.url}/v1/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert httpx.get(f"{served.url}/v1/openapi.json").status_code == 401
    routes = [(method, path) for path, methods in document["paths"].items() for method in methods if path != "/healthz"]
    assert len(routes) == 5
    for method, path in routes:
        found = httpx.request(method, f"{served.url}{path}")
        assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer"), path
    assert "CompletionRequest" in document["components"]["schemas"]


def test_deadlines_and_priorities_are_fields_of_requests(client: openai.OpenAI) -> None:
    asked = {"model": "small", "prompt": "x", "max_tokens": CONTEXT - 2, "temperature": 0}
    with pytest.raises(openai.InternalServerError, match="not complete by its deadline") as caught:
        client.completions.create(**asked, extra_body={"deadline_s": 1e-6, "ignore_eos": True})
    assert caught.value.status_code == 504
    with pytest.raises(openai.BadRequestError, match="priority"):
        client.completions.create(**asked, extra_body={"priority": 1})
    assert client.completions.create(**{**asked, "max_tokens": 2}, extra_body={"priority": -1}).usage
