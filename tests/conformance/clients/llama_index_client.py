"""llama-index, by its OpenAI-like classes."""

import os
from importlib.metadata import version

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

at = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
chat = OpenAILike(model=os.environ["MODEL"], is_chat_model=True, is_function_calling_model=True, max_tokens=16, **at)
asked = [ChatMessage(role="user", content="Walk?")]
assert chat.chat(asked).message.content
assert len(list(chat.stream_chat(asked))) > 1
plain = OpenAILike(model=os.environ["MODEL"], is_chat_model=False, max_tokens=16, **at)
assert plain.complete("def").text and len(list(plain.stream_complete("def"))) > 1
encoder = OpenAILikeEmbedding(model_name=os.environ["ENCODER"], **at)
assert len(encoder.get_text_embedding_batch(["a", "b"])) == 2 and encoder.get_query_embedding("a")
print(version("llama-index-llms-openai-like"))
