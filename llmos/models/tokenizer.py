"""Text to tokens and back: byte-level BPE, in the files of Hugging Face.

Text from outside is only text: ``<|im_end|>`` typed by a user becomes the characters, never the control token. Control
tokens come from :meth:`Tokenizer.encode_chat`, where the template wrote them, and from their ids.
"""

from __future__ import annotations

import codecs
import re
import secrets
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from llmos.errors import DataError, ModelError, UsageError
from llmos.files import read_json, write_atomic, write_json
from llmos.models.chat import CHATML, END, PLAIN, START, ChatTemplate, Messages

END_OF_TEXT = "<|endoftext|>"
ENDS_OF_TURN = (END, "<|eot_id|>", "<|eom_id|>")
"""Tokens with which models of the Llama family end a turn of a chat."""

WORDS = r"[^\r\n\p{L}\p{N}]?[\p{L}_]+|\p{N}| ?[^\s\p{L}\p{N}_]+|\s*\n+[ \t]*|\s+"
"""What merges never cross: names with the mark before them, single digits, operators, a line's end with the next one's
indentation. 3.53 bytes per token of Python's library at 4,096 tokens, where GPT-4's pattern gives 3.42. Operators do
not take the line's end along (3.58 bytes): a prompt that ends in ``):`` must end where tokens do."""


class Tokenizer:
    """A byte-level BPE. ``bos_id`` is None for models without; ``stop_ids`` end a text or a turn of a chat.

    ``control_ids`` are the tokens without text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
        """``settings`` is the content of tokenizer_config.json. Raises ModelError for other kinds of tokenizers."""
        if not isinstance(backend.decoder, decoders.ByteLevel):
            kind = type(backend.decoder).__name__
            raise ModelError(f"the tokenizer's decoder is {kind}: expected ByteLevel, as Llama 3 and SmolLM have")
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._settings = backend, dict(settings)
        backend.encode_special_tokens = True  # "as text", despite its name
        self._control = {str(t.content): i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._bytes = _token_bytes(backend, skip=self._control)
        self.vocab_size = len(self._bytes)
        self.bos_id, eos_id = self._id_of("bos_token"), self._id_of("eos_token")
        if eos_id is None:
            raise ModelError("tokenizer_config.json names no `eos_token` of the vocabulary: expected one")
        self.eos_id = eos_id
        self.control_ids = frozenset(self._control.values())
        self.stop_ids = frozenset({eos_id} | {self._control[end] for end in ENDS_OF_TURN if end in self._control})
        source = _default_template(self._settings.get("chat_template"))
        special = {name: str(self._name_of(name) or "") for name in ("bos_token", "eos_token")}
        self._own_template = source is not None
        self._template = ChatTemplate(source or (CHATML if START in self._control else PLAIN), special)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The tokenizer in ``directory``: tokenizer.json, tokenizer_config.json and maybe chat_template.jinja.

        Raises ModelError when a file is missing, broken, or of a kind of tokenizer that is not supported.
        """
        path, settings_path = Path(directory) / "tokenizer.json", Path(directory) / "tokenizer_config.json"
        jinja = Path(directory) / "chat_template.jinja"
        if not path.exists():
            raise ModelError(
                f"there is no {path}: expected a tokenizer in Hugging Face's format", hint="Check the path."
            )
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # what the library raises for any bad content
            raise ModelError(f"{path} is not a tokenizer: {error}", hint="Copy the model again.") from error
        try:
            settings = {**(read_json(settings_path) or {})}
            if jinja.exists():
                settings["chat_template"] = jinja.read_text(encoding="utf-8")
        except (ValueError, TypeError) as error:
            raise ModelError(f"{settings_path} is not a JSON object: {error}", hint="Copy the model again.") from error
        return cls(backend, settings)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads as well."""
        directory = Path(directory)
        write_atomic(directory / "tokenizer.json", self._backend.to_str(pretty=True).encode())
        write_json(directory / "tokenizer_config.json", self._settings)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The tokens of ``text``. Control tokens spelled out in it are text.

        ``add_special_tokens``: with what the model expects around a text, such as Llama 3's <|begin_of_text|>.
        """
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of each of ``texts``, on all cores."""
        return [list(found.ids) for found in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``. Control tokens and ids beyond the vocabulary have none; broken UTF-8 is U+FFFD."""
        return b"".join(map(self._bytes_of, ids)).decode("utf-8", errors="replace")

    def spelling(self, token: int) -> bytes:
        """How ``token`` is written in a list of tokens: its bytes; its name, for a control token, which has no text."""
        return self._bytes_of(token) or (self._backend.id_to_token(token) or "").encode()

    def stream(self, shown: Collection[int] = ()) -> StreamDecoder:
        """A decoder for one text whose tokens come one by one; control tokens have no text but if ``shown``."""
        return StreamDecoder(self, shown)

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool = True, tools: Messages = ()) -> str:
        """The text of a chat, to look at; :meth:`encode_chat` gives its tokens. Raises UsageError and ModelError."""
        return self._template.render(messages, add_generation_prompt, tools)

    @property
    def chat_template(self) -> str:
        """The source of the chat template: the model's, or a default."""
        return self._template.source

    def encode_chat(self, messages: Messages, add_generation_prompt: bool = True, tools: Messages = ()) -> list[int]:
        """The tokens of a chat. Control tokens are those the template writes; in messages and tools they are only text.

        Where a message spells one, the template gets a stand-in no message can know. Raises UsageError and ModelError.
        """
        (guarded, known), nonce = self._guarded((messages, tools))
        return self._encode_rendered(self.apply_chat_template(guarded, add_generation_prompt, known), nonce)

    def encode_turns(self, messages: Messages) -> list[tuple[list[int], list[int]]]:
        """The tokens of a chat, cut at the assistant's turns: pairs of what comes before an answer, and the answer.

        Together they are the tokens of the chat; what follows the last answer is a pair with an empty one. Tokens do
        not cross the cuts, as they do not when the model answers. Raises UsageError, also when the template changes
        what it wrote of earlier messages or when the model has no template of its own, and ModelError.
        """
        if not self._own_template:
            what = "the model has no chat template: expected one in tokenizer_config.json or chat_template.jinja"
            raise UsageError(what, hint="Give it one: what is learned depends on it.", param="messages")
        guarded, nonce = self._guarded(messages)
        whole, end = self.apply_chat_template(guarded, add_generation_prompt=False), 0
        turns = []
        for number, message in enumerate(messages):
            if message.get("role") == "assistant":
                before = self.apply_chat_template(guarded[:number], add_generation_prompt=True)
                after = self.apply_chat_template(guarded[: number + 1], add_generation_prompt=False)
                if not (whole.startswith(after) and after.startswith(before) and len(before) >= end):
                    what = f"the model's chat template changes what it wrote before `messages[{number}]`"
                    hint = "Use a template that only adds to the text, or split the chat before that message."
                    raise UsageError(f"{what}: its tokens cannot be told from the others", hint=hint, param="messages")
                parts = whole[end : len(before)], whole[len(before) : len(after)]
                turns.append((self._encode_rendered(parts[0], nonce), self._encode_rendered(parts[1], nonce)))
                end = len(after)
        return turns + ([(self._encode_rendered(whole[end:], nonce), [])] if whole[end:] else [])

    def _guarded(self, messages: Sequence[Any]) -> tuple[list[Any], str]:
        """``messages`` with a stand-in for each control token that they spell, and the nonce that begins it."""
        nonce = secrets.token_hex(16)
        return _replaced(
            list(messages), lambda text: self._controls.sub(lambda m: f"{nonce}{self._control[m[0]]};", text)
        ), nonce

    def _encode_rendered(self, text: str, nonce: str) -> list[int]:
        """The tokens of a guarded chat's text, or of a part of it."""
        ids, end = [], 0
        for control in self._controls.finditer(text):
            ids += self._encode_guarded(text[end : control.start()], nonce)
            ids.append(self._control[control[0]])
            end = control.end()
        return ids + self._encode_guarded(text[end:], nonce)

    def _encode_guarded(self, text: str, nonce: str) -> list[int]:
        return self.encode(re.sub(rf"{nonce}(\d+);", lambda m: str(self._backend.id_to_token(int(m[1]))), text))

    def _bytes_of(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < self.vocab_size else b""

    def _name_of(self, role: str) -> str | None:
        """The token that tokenizer_config.json gives a role, such as eos_token."""
        found = self._settings.get(role)
        return found.get("content") if isinstance(found, dict) else found

    def _id_of(self, role: str) -> int | None:
        name = self._name_of(role)
        return None if name is None else self._backend.token_to_id(name)


class StreamDecoder:
    """Decodes one text token by token: what :meth:`push` and :meth:`finish` return adds up to ``decode`` of all.

    Text comes as soon as its characters are whole; bytes of a character wait for the rest of it.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Collection[int] = ()) -> None:
        self._tokenizer, self._shown = tokenizer, shown
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes, maybe none."""
        tokenizer = self._tokenizer
        return self._utf8.decode(tokenizer.spelling(token) if token in self._shown else tokenizer._bytes_of(token))

    def finish(self) -> str:
        """U+FFFD if the text ended within a character, else nothing."""
        return self._utf8.decode(b"", final=True)


def train_bpe(texts: Iterable[str | Path], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most ``vocab_size`` tokens for ``texts``: texts (str) and UTF-8 files (Path).

    With special tokens, a text begins with END_OF_TEXT, which in training stands between texts: a model then knows that
    nothing precedes. The same texts give the same tokenizer. Small text has fewer pairs to merge: ``vocab_size`` of the
    result may be smaller. Raises UsageError when the bytes and control tokens do not fit, DataError for a file that is
    not UTF-8.
    """
    special = [END_OF_TEXT, START, END]
    if vocab_size < 256 + len(special):
        what = f"`vocab_size: {vocab_size}` is too small: expected at least {256 + len(special)}"
        raise UsageError(f"{what}, for all bytes and {', '.join(special)}", param="vocab_size")
    backend = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_read(texts), trainer)
    begin = (END_OF_TEXT, special.index(END_OF_TEXT))
    backend.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[begin])
    settings = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "chat_template": CHATML}
    return Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast", **settings})


def _read(texts: Iterable[str | Path]) -> Iterator[str]:
    for text in texts:
        try:
            yield text if isinstance(text, str) else text.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{text} is not UTF-8 text: {error}", hint="Convert it, or leave it out.") from error
        except OSError as error:
            raise DataError(f"{text} cannot be read: {error}", hint="Check the path.") from error


def _token_bytes(backend: tokenizers.Tokenizer, skip: Container[str]) -> list[bytes]:
    """The bytes each token stands for; none for those in ``skip``, and for ids that no token has."""
    byte_of = {char: byte for byte, char in _byte_chars().items()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        if token not in skip:
            table[number] = _bytes_of_token(token, byte_of)
    return table


def _bytes_of_token(token: str, byte_of: Mapping[str, int]) -> bytes:
    try:
        return bytes([byte_of[char] for char in token])
    except KeyError:  # an added token, which is spelled as it is
        return token.encode()


def _byte_chars() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary: printable ones for themselves (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _default_template(found: Any) -> str | None:
    """The one template, or that called ``default`` of several."""
    if isinstance(found, list):
        return next((str(entry["template"]) for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _replaced(value: Any, replace: Callable[[str], str]) -> Any:
    """``value`` with ``replace`` applied to every text in it."""
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, Mapping):
        return {key: _replaced(part, replace) for key, part in value.items()}
    return [_replaced(part, replace) for part in value] if isinstance(value, list | tuple) else value
