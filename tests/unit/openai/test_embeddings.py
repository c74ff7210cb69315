"""``/v1/embeddings`` over a real socket with OpenAI's own client: an encoder without Ray."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from llmos.infer.encoder import EncoderEngine
from llmos.serving import standalone
from tests.unit.models.encoders import write_encoder
from tests.unit.openai.conftest import Served
from tests.unit.openai.world import KEY, listening


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("encoder")
    write_encoder(directory)
    with listening(standalone(EncoderEngine(directory, threads=1), "encoder", KEY)) as url:
        yield url


@pytest.fixture(scope="module")
def nested_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("nested")
    write_encoder(directory, config={"is_matryoshka": True})
    with listening(standalone(EncoderEngine(directory, threads=1), "encoder", KEY)) as url:
        yield url


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with client_of(url) as client:
        yield client


def test_texts_and_tokens_in_both_formats(client: openai.OpenAI) -> None:
    texts = ["the cat", "a dog sat on the mat"]
    found = client.embeddings.create(model="encoder", input=texts)  # asks for base64 by itself
    vectors_ND = np.array([one.embedding for one in found.data])
    assert [one.index for one in found.data] == [0, 1] and vectors_ND.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, rtol=1e-5)
    assert found.usage.prompt_tokens == found.usage.total_tokens == 4 + 8
    assert (found.object, found.model, found.data[0].object) == ("list", "encoder", "embedding")
    plain = client.embeddings.create(model="encoder", input=[[2, 4, 5, 3]], encoding_format="float", user="ada")
    np.testing.assert_allclose(plain.data[0].embedding, vectors_ND[0], atol=1e-6)


def test_base64_is_of_little_endian_floats(url: str) -> None:
    body = {"model": "encoder", "input": "the cat", "encoding_format": "base64"}
    answer = httpx.post(f"{url}/v1/embeddings", json=body, headers={"Authorization": f"Bearer {KEY}"}).json()
    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)


def test_control_tokens_in_a_text_are_text(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="encoder", input="cat [SEP] dog")
    assert found.usage.prompt_tokens == 2 + 2 + 3


def test_a_text_that_is_too_long_is_refused_or_cut_when_asked(client: openai.OpenAI) -> None:
    long = "the cat sat on a mat and " * 10
    with pytest.raises(openai.BadRequestError, match="input 1 has 72 tokens: expected at most 40") as refused:
        client.embeddings.create(model="encoder", input=["a", long])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    cut = client.embeddings.create(model="encoder", input=long, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 40


def test_vectors_are_shortened_only_where_the_model_was_made_for_it(client: openai.OpenAI, nested_url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="`dimensions` is 8") as refused:
        client.embeddings.create(model="encoder", input="a", dimensions=8)
    assert refused.value.param == "dimensions"
    assert len(client.embeddings.create(model="encoder", input="a", dimensions=32).data[0].embedding) == 32
    with client_of(nested_url) as nested:
        vector = np.array(nested.embeddings.create(model="encoder", input="a", dimensions=8).data[0].embedding)
        np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
        whole = np.array(nested.embeddings.create(model="encoder", input="a").data[0].embedding)
        np.testing.assert_allclose(vector, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
        with pytest.raises(openai.BadRequestError, match="has 1 to 32"):
            nested.embeddings.create(model="encoder", input="a", dimensions=33)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": ""}, "has an empty input"),
        ({"input": []}, "at least one"),
        ({"input": ["a", 1]}, "expected a text, texts, tokens"),
        ({"input": [[2, 99]]}, "token 99 of the input is not one: expected 0 to 20"),
        ({"input": ["a"] * 2049}, "has 2049 inputs: expected at most 2048"),
        ({"input": "a", "dimensions": 0}, "`dimensions`"),
        ({"input": "a", "encoding_format": "int8"}, "`encoding_format`"),
        ({"inputs": "a", "input": "a"}, "`inputs` is not a field of this request. Did you mean `input`?"),
    ],
)
def test_bad_requests_are_named(url: str, body: dict[str, object], message: str) -> None:
    answer = httpx.post(
        f"{url}/v1/embeddings", json={"model": "encoder", **body}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_each_kind_of_model_says_what_it_is_not_for(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="`encoder` is an encoder: .* Use /v1/embeddings") as refused:
        client.chat.completions.create(model="encoder", messages=[{"role": "user", "content": "a"}])
    assert refused.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="is an encoder"):
        client.completions.create(model="encoder", prompt="a", stream=True)
    with client_of(served.url) as decoder, pytest.raises(openai.BadRequestError, match="`small` generates text"):
        decoder.embeddings.create(model="small", input="a")
    with pytest.raises(openai.NotFoundError, match="model `other` is not served"):
        client.embeddings.create(model="other", input="a")


def test_a_key_is_asked_for(url: str) -> None:
    assert httpx.post(f"{url}/v1/embeddings", json={"model": "encoder", "input": "a"}).status_code == 401
