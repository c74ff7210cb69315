"""pydantic-ai."""

import asyncio
import os
from importlib.metadata import version

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Place(BaseModel):
    """A place."""

    colour: bool


provider = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
model = OpenAIChatModel(os.environ["MODEL"], provider=provider)
settings = {"max_tokens": 200, "seed": 1}
assert Agent(model, model_settings=settings).run_sync("Walk?").output
assert isinstance(Agent(model, output_type=Place, model_settings=settings).run_sync("Walk?").output, Place)
assert isinstance(
    Agent(model, output_type=NativeOutput(Place), model_settings=settings).run_sync("Walk?").output, Place
)


async def streamed() -> int:
    async with Agent(model, model_settings=settings).run_stream("Walk?") as result:
        return len([text async for text in result.stream_text(delta=True, debounce_by=None)])


assert asyncio.run(streamed()) > 1
print(version("pydantic-ai-slim"))
