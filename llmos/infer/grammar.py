"""Answers that obey a grammar: before each choice, which tokens may come next.

llguidance does the work (MIT, one wheel for all Pythons, which brings nothing else). Beside xgrammar 0.2.8 on one core
(16,384 tokens, a schema of nine parts), it compiles in 1 to 6 ms instead of 740 to 970, and a mask takes 20 to 25 µs
instead of 2; xgrammar would bring transformers and triton into every installation.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from llmos.errors import UsageError
from llmos.infer.request import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # only its stubs know it

    from llmos.models import Tokenizer

MAX_COMPILED, MAX_COMPILED_CHARS = 128, 4 * 2**20
"""Compiled grammars that are kept, and the characters of their texts together."""

MAX_THREADS = 4
"""So many tenants' grammars are compiled at once."""

_WHITESPACE = r"(\x20|\x0A[\x20\x09]{0,32})?"
"""Between the tokens of JSON: a blank, or a new line with its indentation. A model must not stay there for ever."""

_JSON: JsonCompileOptions = {"whitespace_pattern": _WHITESPACE}
_LEXER_STATES = 50_000  # 1 to 2 kB each
_MAX_TRIES, _TRIES_S = 200, 1.0  # to find the wrong part of a schema
_DEFINITIONS = ("$defs", "definitions")
_NAMED = (*_DEFINITIONS, "properties", "patternProperties", "dependentSchemas")
"""Keywords of JSON schema that hold schemas by name."""


class Matcher:
    """One answer's place in its grammar."""

    def __init__(self, inner: LLMatcher, vocabulary: int) -> None:
        self.inner, self.vocabulary = inner, vocabulary

    @property
    def error(self) -> str:
        """Why the answer cannot go on; empty as long as all is well."""
        return " ".join(self.inner.get_error().split()) if self.inner.is_error() else ""

    def take(self, tokens: Sequence[int]) -> None:
        """The answer goes on with ``tokens``. One that is not allowed is an ``error`` from now on."""
        self.inner.consume_tokens(list(tokens))

    def copy(self) -> Matcher:
        """Another answer's place, the same now."""
        return Matcher(self.inner.deep_copy(), self.vocabulary)


def masks(walks: Sequence[tuple[Matcher, Sequence[int]]], vocabulary: int) -> NDArray[np.bool_]:
    """[R, vocabulary]: what may come next, and after each draft; for a matcher with k drafts, 1 + k rows.

    After a draft that is not allowed, nothing is. Ids that the tokenizer does not have are never allowed.
    """
    firsts = np.cumsum([0] + [1 + len(drafts) for _, drafts in walks])
    known = walks[0][0].vocabulary
    bits_RW = np.zeros((firsts[-1], -(-known // 32)), dtype=np.uint32)
    place = bits_RW.ctypes.data, bits_RW.shape[1] * bits_RW.itemsize, len(bits_RW)
    plain, drafted = [], []
    for (matcher, drafts), first in zip(walks, firsts.tolist(), strict=False):
        if drafts:
            drafted.append((matcher.inner, first, list(drafts)))
        else:
            plain.append((matcher.inner, first))
    if plain:
        _executor().unsafe_compute_mask_ptr(plain, *place)
    if drafted:
        _executor().unsafe_compute_mask_ptr_with_draft_token(drafted, *place)
    allowed_RV = np.zeros((len(bits_RW), vocabulary), dtype=np.bool_)
    width = min(known, vocabulary)
    allowed_RV[:, :width] = np.unpackbits(bits_RW.view(np.uint8), axis=1, count=width, bitorder="little")
    return allowed_RV


class Grammars:
    """Compiles grammars in threads of its own, so that nobody else waits, and keeps those used last.

    Each tenant's are compiled one after another: one that takes long holds up its own. And each tenant finds its own
    only: nobody learns from the time it takes what another has asked for. ``tokenizer`` is called at the first grammar.
    ``ends`` are the tokens that may end an answer.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], ends: frozenset[int]) -> None:
        self._load, self._ends = tokenizer, ends
        self._tokenizer: LLTokenizer | None = None
        self._loading, self._lock = Lock(), Lock()
        self._compiled: OrderedDict[tuple[str, Grammar], Matcher] = OrderedDict()
        self._lines: dict[str, deque[tuple[Grammar, Future[Matcher]]]] = {}  # of tenants that have some to compile
        self._threads = ThreadPoolExecutor(MAX_THREADS, "llmos-grammar")

    def start(self, grammar: Grammar, tenant: str = "") -> Future[Matcher]:
        """A matcher for one answer, soon. It raises UsageError, which says what is wrong with the grammar and where.

        A future that is cancelled before its turn costs nothing.
        """
        future: Future[Matcher] = Future()
        with self._lock:
            line = self._lines.setdefault(tenant, deque())
            line.append((grammar, future))
            if len(line) == 1:
                self._threads.submit(self._serve, tenant)
        return future

    def close(self) -> None:
        """Begin nothing more. What is being compiled is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _serve(self, tenant: str) -> None:
        """Compile the first of ``tenant``'s; then it is another tenant's turn."""
        grammar, future = self._lines[tenant][0]
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(self._matcher(grammar, tenant))
            except BaseException as error:
                future.set_exception(error)
        with self._lock:
            self._lines[tenant].popleft()
            if not self._lines[tenant]:
                del self._lines[tenant]
                return
        with suppress(RuntimeError):  # closed meanwhile
            self._threads.submit(self._serve, tenant)

    def _matcher(self, grammar: Grammar, tenant: str) -> Matcher:
        key = tenant, grammar
        with self._lock:
            found = self._compiled.get(key)
        found = found or self._compile(grammar)
        with self._lock:
            self._compiled[key] = found
            self._compiled.move_to_end(key)
            while len(self._compiled) > MAX_COMPILED or self._characters() > MAX_COMPILED_CHARS:
                self._compiled.popitem(last=False)
        return found.copy()

    def _characters(self) -> int:
        return sum(len(grammar.text) for _, grammar in self._compiled)

    def _compile(self, grammar: Grammar) -> Matcher:
        with self._loading:
            if self._tokenizer is None:
                self._tokenizer = _for_llguidance(self._load(), self._ends)
        matcher = Matcher(_built(self._tokenizer, _text(grammar)), self._tokenizer.vocab_size)
        if error := matcher.error:
            if grammar.kind == "json_schema":
                error = f"{_where(json.loads(grammar.text), error, self._tokenizer)}: {error}"
            raise _wrong(grammar, error)
        masks([(matcher, ())], matcher.vocabulary)  # what the first mask prepares serves all copies
        return matcher


def _text(grammar: Grammar) -> str:
    """What llguidance compiles. Raises UsageError for what is not JSON where it must be."""
    if grammar.kind == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"}, _JSON)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    try:
        value = json.loads(grammar.text)
    except ValueError as error:
        raise _wrong(grammar, f"it is not JSON: {error}") from error
    if grammar.kind == "choice":
        if not (isinstance(value, list) and value and all(isinstance(text, str) and text for text in value)):
            raise _wrong(grammar, "expected a list of texts, and at least one, none of them empty")
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(t, ensure_ascii=False) for t in value))
    if not isinstance(value, dict):
        raise _wrong(grammar, f"it is a {type(value).__name__}: expected an object")
    return LLMatcher.grammar_from_json_schema(value, _JSON)


def _where(schema: dict[str, Any], error: str, tokenizer: LLTokenizer) -> str:
    """The smallest part of a JSON schema that has the same ``error`` alone, as ``$.properties.age``."""
    shared = {name: schema[name] for name in _DEFINITIONS if name in schema}
    place, until_s = "$", time.monotonic() + _TRIES_S
    tries = takewhile(lambda _: time.monotonic() < until_s, range(_MAX_TRIES))
    while part := next((p for p in _parts(schema) if _error({**shared, **p[1]}, tokenizer, tries) == error), None):
        place, schema = place + part[0], part[1]
    return place


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas in ``schema``, definitions first, and their paths."""
    for key in sorted(schema, key=lambda key: key not in _DEFINITIONS):
        value = schema[key]
        if isinstance(value, list):
            yield from ((f".{key}[{number}]", one) for number, one in enumerate(value) if isinstance(one, dict))
        elif key in _NAMED and isinstance(value, dict):
            yield from ((f".{key}.{name}", one) for name, one in value.items() if isinstance(one, dict))
        elif isinstance(value, dict):
            yield f".{key}", value


def _error(schema: dict[str, Any], tokenizer: LLTokenizer, tries: Iterator[int]) -> str:
    """What is wrong with ``schema``, as long as there are ``tries``."""
    if next(tries, None) is None:
        return ""
    return Matcher(_built(tokenizer, LLMatcher.grammar_from_json_schema(schema, _JSON)), 0).error


def _built(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    limits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
    return LLMatcher(tokenizer, text, log_level=0, limits=limits)


def _wrong(grammar: Grammar, what: str) -> UsageError:
    what = f"the {grammar.kind.replace('_', ' ')} cannot be used: {what}"
    return UsageError(what, hint="docs/requests.md says which forms there are.", param="grammar")


def _for_llguidance(tokenizer: Tokenizer, ends: frozenset[int]) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Words(tokenizer)), eos_token=sorted(ends))


class _Words:
    """A tokenizer, as llguidance wants one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.spelling(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


@cache
def _executor() -> LLExecutor:
    """Threads for masks: few, for they share the cores with the model."""
    return LLExecutor(2)
