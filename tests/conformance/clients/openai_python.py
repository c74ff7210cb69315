"""OpenAI's Python client."""

import asyncio
import json
import os

import openai
from pydantic import BaseModel

client, model = openai.OpenAI(), os.environ["MODEL"]
chat = {"model": model, "messages": [{"role": "user", "content": "Walk?"}], "max_tokens": 12}
tool = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {
            "type": "object",
            "properties": {"hour": {"enum": [1, 2]}},
            "required": ["hour"],
            "additionalProperties": False,
        },
    },
}


class Place(BaseModel):
    colour: bool


assert model in [one.id for one in client.models.list()] and client.models.retrieve(model).id == model
whole = client.chat.completions.create(**chat, temperature=0)
assert whole.choices[0].finish_reason == "length" and whole.usage.prompt_tokens_details.cached_tokens >= 0
chunks = list(
    client.chat.completions.create(**chat, temperature=0, stream=True, stream_options={"include_usage": True})
)
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
assert chunks[-1].usage.completion_tokens == 12
parsed = client.chat.completions.parse(**{**chat, "max_tokens": 200, "seed": 1}, response_format=Place)
assert isinstance(parsed.choices[0].message.parsed, Place)
with client.chat.completions.stream(
    **{**chat, "max_tokens": 200}, parallel_tool_calls=False, tools=[tool], tool_choice="required"
) as stream:
    stream.until_done()
    call = stream.get_final_completion().choices[0].message.tool_calls[0]
assert call.function.name == "clock" and json.loads(call.function.arguments)["hour"] in (1, 2)
raw = client.chat.completions.with_raw_response.create(**chat, verbosity="low")
assert raw.headers["x-request-id"].startswith("req_") and raw.headers["llmos-ignored-params"] == "verbosity"
assert client.completions.create(model=model, prompt="def", max_tokens=4, logprobs=1).choices[0].logprobs.tokens
floats = client.embeddings.create(model=os.environ["ENCODER"], input=["a", "b"], encoding_format="float").data
assert client.embeddings.create(model=os.environ["ENCODER"], input=["a", "b"]).data[1].embedding == floats[1].embedding
kept = client.chat.completions.create(**chat, store=True, metadata={"test": "openai"})
assert client.chat.completions.retrieve(kept.id).choices == kept.choices
assert kept.id in [one.id for one in client.chat.completions.list(metadata={"test": "openai"})]
assert client.chat.completions.messages.list(kept.id).data[0].content == "Walk?"
assert client.chat.completions.update(kept.id, metadata={}).id == kept.id
assert client.chat.completions.delete(kept.id).deleted
missing = None
try:
    client.chat.completions.create(**{**chat, "model": "none"})
except openai.NotFoundError as error:
    missing = error
assert missing is not None and missing.code == "model_not_found" and missing.request_id


async def streamed() -> int:
    async with openai.AsyncOpenAI() as other:
        return len([c async for c in await other.chat.completions.create(**chat, stream=True)])


assert asyncio.run(streamed()) > 1
print(openai.__version__)
