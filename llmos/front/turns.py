"""The replicas that one request is sent to, one after another until one has begun to answer.

The revision is chosen first, by its share of the requests; then the prompt is read, if there is a choice and a cache
that may hold some of it; then the router chooses. Nobody waits for a tokenizer: until it is loaded, or if it cannot
be, the choice is by load alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from llmos.front.fleet import Fleet
from llmos.front.prompts import CHARS_PER_TOKEN, Prompt, Prompts
from llmos.front.routing import Candidate, Given, Router
from llmos.heartbeat import Heartbeat
from llmos.openai.caller import Caller
from llmos.openai.schema import ChatRequest, CompletionRequest

ANSWER_TOKENS = 256
"""What an answer is expected to have, at most: how long it may be says little of how long it gets."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a replica of ``service``: ``body`` (JSON) at ``path``, for ``caller``.

    ``streamed`` answers come in pieces. ``request`` is what ``body`` says, where that has a prompt.
    ``begun`` is told which replica answers.
    """

    service: str
    path: str
    body: bytes
    caller: Caller
    streamed: bool
    request: ChatRequest | CompletionRequest | None = None
    begun: Callable[[Heartbeat], None] | None = None

    @property
    def session(self) -> str:
        """What the requests of one conversation have in common, and no other key's; empty if nothing is said of it."""
        named = self.request and (self.request.prompt_cache_key or self.request.user)
        if not named:
            return ""
        whole = "\0".join((self.service, self.caller.key, named))
        return blake2b(whole.encode(errors="surrogatepass"), digest_size=16).hexdigest()

    @property
    def answer(self) -> int:
        """Tokens that the answers are expected to have."""
        if self.request is None:
            return 0
        limit = ANSWER_TOKENS if self.request.limit is None else self.request.limit
        prompts = len(self.request.prompts) if isinstance(self.request, CompletionRequest) else 1
        return min(limit, ANSWER_TOKENS) * (self.request.n or 1) * prompts


class Turn:
    """A request is with ``replica``, and counts there until :meth:`ended`."""

    __slots__ = ("_given", "_router", "replica")

    def __init__(self, replica: Heartbeat, router: Router, given: Given) -> None:
        self.replica, self._router, self._given = replica, router, given

    def answers(self) -> None:
        """The first of its answer is there."""
        self._router.answers(self._given)

    def ended(self) -> None:
        """It is over there, however it ended. A second time changes nothing."""
        self._router.ended(self._given)


class Turns:
    """Of one ``question`` to ``fleet``."""

    def __init__(self, fleet: Fleet, prompts: Prompts, question: Question) -> None:
        self._fleet, self._prompts, self._question = fleet, prompts, question
        self._session = question.session
        self._tried: set[str] = set()
        self._read: dict[str, Prompt] = {}

    async def next(self) -> Turn:
        """With a replica that had none yet. Raises what :meth:`Fleet.find` raises."""
        while True:
            found = await self._fleet.find(self._question.service, self._tried, self._session)
            prompt = await self._prompt(found)
            if there := self._fleet.still(found):  # a long prompt takes its time
                return self._begin(there, prompt)

    def _begin(self, there: Sequence[Heartbeat], prompt: Prompt) -> Turn:
        """Chosen and counted at once: whoever comes next sees it."""
        tokens, now, router = prompt.tokens + self._question.answer, self._fleet.clock(), self._fleet.router
        candidates = [Candidate(one.replica, one.blocks) for one in there]
        chosen = router.choose(candidates, prompt.digests, self._session, tokens, now)
        self._tried.add(chosen)
        given = router.begun(chosen, prompt.digests, self._session, tokens, now)
        return Turn(next(one for one in there if one.replica == chosen), router, given)

    async def _prompt(self, found: Sequence[Heartbeat]) -> Prompt:
        """The prompt as the replicas ``found``, all of one revision, see it; its size alone where that is enough."""
        question, revision = self._question, found[0].revision
        if revision in self._read:
            return self._read[revision]
        model = self._fleet.model(found) if question.request else None
        guess = Prompt(-(-len(question.body) // CHARS_PER_TOKEN))
        if model is None or question.request is None or not self._prompts.warm(model):
            return guess
        try:
            read = await self._prompts.read(model, question.request, question.caller.key)
        except Exception as error:  # whatever is wrong with it, a replica says so
            _log.debug("a prompt for %s cannot be read: %s", question.service, error)
            read = guess
        self._read[revision] = read
        return read


class Warming:
    """Has the tokenizers loaded that :class:`Turns` will want, once for each model that comes to be routed."""

    def __init__(self, fleet: Fleet, prompts: Prompts) -> None:
        self._fleet, self._prompts = fleet, prompts
        self._known: set[str] = set()

    def look(self) -> None:
        """To be called about twice a second, in the event loop of the prompts."""
        there = self._fleet.routed()
        for model in there - self._known:
            self._prompts.warm(model)
        self._known = there
