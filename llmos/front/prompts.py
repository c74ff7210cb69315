"""A request's prompt as its replica will see it: how many tokens it has, and what the engine calls its blocks.

Tokens are made with the model's own tokenizer and chat template, the very way that ``llmos.serving`` makes them, and
hashed with the salt that the engine uses.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.errors import ModelError
from llmos.infer.prefix import digests
from llmos.models import Tokenizer
from llmos.models.encoder_config import is_encoder
from llmos.openai.schema import ChatRequest, CompletionRequest

MAX_MODELS = 16
"""Tokenizers that are kept."""
LONG = 2_000
"""Characters or tokens from which on a prompt is left to a thread: it would keep others waiting."""
TURN = 50
"""What a turn of a chat takes to be written by a template, as characters."""
CHARS_PER_TOKEN = 3
"""Where the tokenizer cannot be used: rather too many tokens than too few."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """``tokens`` of all prompts of a request; ``digests`` of the blocks of the first, none if they are not known."""

    tokens: int
    digests: Sequence[bytes] = ()


class Prompts:
    """Reads requests, for one event loop. ``max_models`` tokenizers are kept."""

    def __init__(self, max_models: int = MAX_MODELS) -> None:
        self._max_models = max_models
        self._tokenizers: OrderedDict[str, asyncio.Task[Tokenizer | None]] = OrderedDict()

    def warm(self, directory: str) -> bool:
        """Have the tokenizer of the model in ``directory`` loaded. Whether it is, and can be used."""
        task = self._task(directory)
        return task.done() and task.result() is not None

    async def read(self, directory: str, request: CompletionRequest | ChatRequest, key: str) -> Prompt:
        """The prompt of ``request``, asked with the key of this id, for the model in ``directory``.

        A model whose tokenizer cannot be used here is no error: its tokens are estimated. Raises UsageError for
        messages that the chat template does not take.
        """
        tokenizer = await self.load(directory)
        size = _size(request)
        if tokenizer is None:
            return Prompt(-(-size // CHARS_PER_TOKEN))
        if _quick(request, size):
            return _read(tokenizer, request, key)
        return await asyncio.to_thread(_read, tokenizer, request, key)

    async def load(self, directory: str) -> Tokenizer | None:
        """The tokenizer of the model in ``directory``; None if it cannot be used. Loaded once."""
        task = self._task(directory)
        return task.result() if task.done() else await asyncio.shield(task)

    def _task(self, directory: str) -> asyncio.Task[Tokenizer | None]:
        task = self._tokenizers.get(directory)
        if task is None:
            task = self._tokenizers[directory] = asyncio.create_task(asyncio.to_thread(_load, directory))
            if len(self._tokenizers) > self._max_models:
                self._tokenizers.popitem(last=False)
        self._tokenizers.move_to_end(directory)
        return task


def token_lists(tokenizer: Tokenizer, request: CompletionRequest | ChatRequest) -> list[list[int]]:
    """The tokens of each prompt, as ``llmos.serving`` asks the engine. Raises UsageError and ModelError."""
    if isinstance(request, ChatRequest):
        tools = [tool.plain for tool in request.offered]
        return [tokenizer.encode_chat([message.plain for message in request.messages], tools=tools)]
    nothing = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]  # a new document begins
    given = [tokenizer.encode(p, add_special_tokens=True) if isinstance(p, str) else p for p in request.prompts]
    return [tokens or nothing for tokens in given]


def _read(tokenizer: Tokenizer, request: CompletionRequest | ChatRequest, key: str) -> Prompt:
    lists = token_lists(tokenizer, request)
    return Prompt(sum(map(len, lists)), digests(lists[0], key.encode()))


def _size(request: CompletionRequest | ChatRequest) -> int:
    """Characters of texts, and tokens; of a chat, also those of earlier calls, but not of tools."""
    if isinstance(request, ChatRequest):
        calls = (call.function.arguments for message in request.messages for call in message.tool_calls or ())
        return sum(len(message.content or "") for message in request.messages) + sum(map(len, calls))
    return sum(map(len, request.prompts))


def _quick(request: CompletionRequest | ChatRequest, size: int) -> bool:
    """Whether reading it keeps nobody waiting. Templates go over every turn and every tool, however short."""
    turns = len(request.messages) if isinstance(request, ChatRequest) else 0
    return size + turns * TURN < LONG and not (isinstance(request, ChatRequest) and request.offered)


def _load(directory: str) -> Tokenizer | None:
    if is_encoder(directory):
        return None  # it keeps nothing of a text
    try:
        return Tokenizer.load(directory)
    except (ModelError, OSError) as error:
        _log.warning("requests for %s are routed without their prompts: %s", directory, error)
        return None
