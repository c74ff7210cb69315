"""litellm, as a client of an OpenAI-compatible server."""

import os
from importlib.metadata import version

import litellm

at = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
asked = {"model": f"openai/{os.environ['MODEL']}", "messages": [{"role": "user", "content": "Walk?"}], "max_tokens": 12}
whole = litellm.completion(**asked, **at)
assert whole.choices[0].message.content and whole.usage.completion_tokens == 12
assert len(list(litellm.completion(**asked, **at, stream=True, stream_options={"include_usage": True}))) > 1
assert litellm.text_completion(model=f"text-completion-openai/{os.environ['MODEL']}", prompt="def", max_tokens=4, **at)
vectors = litellm.embedding(model=f"openai/{os.environ['ENCODER']}", input=["a", "b"], encoding_format="float", **at)
assert len(vectors.data) == 2
try:
    litellm.completion(**{**asked, "model": "openai/none"}, **at)
except litellm.NotFoundError:
    print(version("litellm"))
