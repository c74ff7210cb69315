"""langchain-openai."""

import os
from importlib.metadata import version

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Place(BaseModel):
    """A place."""

    colour: bool


chat = ChatOpenAI(model=os.environ["MODEL"], max_tokens=200, seed=1, use_responses_api=False)
assert chat.invoke("Walk?").content
assert len(list(chat.stream("Walk?"))) > 1
for method in ("json_schema", "function_calling"):
    assert isinstance(chat.with_structured_output(Place, method=method).invoke("Walk?"), Place)
assert chat.bind_tools([Place], tool_choice="any").invoke("Walk?").tool_calls[0]["name"] == "Place"
assert len(chat.batch(["a", "b"])) == 2
assert OpenAI(model=os.environ["MODEL"], max_tokens=8).invoke("def")
vectors = OpenAIEmbeddings(model=os.environ["ENCODER"], check_embedding_ctx_length=False).embed_documents(["a", "b"])
assert len(vectors) == 2 and vectors[0] != vectors[1]
print(version("langchain-openai"))
