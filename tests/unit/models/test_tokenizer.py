"""Text to tokens and back, and files that other libraries read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import DataError, ModelError, UsageError
from llmos.models import Tokenizer, train_bpe
from llmos.models.chat import CHATML
from tests.unit.models.conftest import CODE

TOKENIZER = train_bpe([CODE, "Größe 漢字 🦙\n"], vocab_size=320)
ids = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40)


@given(st.text() | st.lists(st.sampled_from([*"<|>", "<|im_end|>", "im_start", "🦙", " ", "\n", "\r\n"])).map("".join))
def test_any_text_comes_back(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert not TOKENIZER.stop_ids & set(tokens)  # whatever it spells, text is no control token
    assert TOKENIZER.encode_batch([text, "x"]) == [tokens, TOKENIZER.encode("x")]


@given(ids)
def test_a_stream_adds_up_to_the_whole(tokens: list[int]) -> None:
    stream = TOKENIZER.stream()
    parts = [stream.push(token) for token in tokens]
    assert "".join(parts) + stream.finish() == TOKENIZER.decode(tokens)


@given(st.text(min_size=1))
def test_a_stream_never_shows_half_a_character(text: str) -> None:
    stream, shown = TOKENIZER.stream(), ""
    for token in TOKENIZER.encode(text):
        shown += stream.push(token)
        assert text.startswith(shown)
    assert shown == text and stream.finish() == ""


@given(ids)
def test_decoding_is_that_of_the_library(tokens: list[int]) -> None:
    library = tokenizers.Tokenizer.from_str(TOKENIZER._backend.to_str())
    assert TOKENIZER.decode(tokens) == library.decode(tokens, skip_special_tokens=True)


def test_a_character_cut_off_shows_only_at_the_end(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("🐍")
    stream = tokenizer.stream()
    assert (stream.push(first), stream.finish()) == ("", "�")


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    x = tokenizer.encode("x")
    assert tokenizer.decode([tokenizer.vocab_size, *x, -1, 10**9]) == "x"


def test_tokens_suit_code() -> None:
    big = train_bpe([CODE * 5 + "def f():\n" + "".join(" " * n + "x = 1\n" for n in range(4, 40, 4)) * 20], 600)
    split = [big.decode([token]) for token in big.encode("x = 1\n        for i in range(1234):\n")]
    assert split == ["x", " =", " ", "1", "\n        ", "for", " i", " in", " range", "(", *"1234", "):", "\n"]


def test_added_tokens_that_are_no_control_tokens_are_text(tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.add_tokens(["two words", "漢漢"])
    added = Tokenizer(backend, {"eos_token": "<|endoftext|>"})
    tokens = added.encode("(two words, 漢漢)")
    assert added.decode(tokens) == "(two words, 漢漢)"
    assert tokens[1] == tokenizer.vocab_size and tokens[-2] == tokenizer.vocab_size + 1


def test_line_ends_are_kept(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"one\r\ntwo\r\n" * 50)
    trained = train_bpe([tmp_path / "dos.txt"], 270)
    assert "\r\n" in map(trained.decode, ([token] for token in range(trained.vocab_size)))


def test_training_is_deterministic(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(CODE)
    for name, texts in (("a", [CODE, "é"]), ("b", [file, "é"])):
        train_bpe(texts, 300).save(tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_training_refuses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`vocab_size: 258` is too small: expected at least 259"):
        train_bpe(["text"], 258)
    assert train_bpe([], 259).vocab_size == 259
    (tmp_path / "latin1.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin1.txt is not UTF-8 text"):
        train_bpe([tmp_path / "latin1.txt"], 300)
    with pytest.raises(DataError, match=r"gone.txt cannot be read"):
        train_bpe([tmp_path / "gone.txt"], 300)


def test_files_round_trip(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert loaded.encode(CODE) == tokenizer.encode(CODE)
    assert (loaded.vocab_size, loaded.bos_id, loaded.eos_id) == (tokenizer.vocab_size, 0, 0)
    assert loaded.stop_ids == {0, 2}


def test_transformers_reads_our_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(CODE)["input_ids"] == tokenizer.encode(CODE, add_special_tokens=True)
    assert tokenizer.encode(CODE, add_special_tokens=True) == [tokenizer.bos_id, *tokenizer.encode(CODE)]
    assert (theirs.eos_token_id, theirs.bos_token_id, len(theirs)) == (tokenizer.eos_id, 0, tokenizer.vocab_size)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}]
    for prompt in (True, False):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert text == tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)
        rendered = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert rendered == tokenizer.encode_chat(messages, add_generation_prompt=prompt)


def test_we_read_files_of_the_llama_kind(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A start token from the post-processor, tokens as objects, truncation left on, the template in its own file."""
    tokenizer.save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    begin, turn = backend.token_to_id("<|begin_of_text|>"), backend.token_to_id("<|eot_id|>")
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}<|eot_id|>")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(CODE) == tokenizer.encode(CODE)
    assert loaded.encode("x", add_special_tokens=True) == [begin, *tokenizer.encode("x")]
    assert (loaded.bos_id, loaded.stop_ids) == (begin, {0, 2, turn})
    assert loaded.encode_chat([{"content": "x"}]) == [begin, *tokenizer.encode("x"), turn]
    loaded.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode_chat([{"content": "x"}]) == [begin, *tokenizer.encode("x"), turn]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "there is no .*tokenizer.json"),
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", "\x00", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", "3", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", None, "names no `eos_token`"),
        ("tokenizer_config.json", '{"eos_token": "<nowhere>"}', "names no `eos_token`"),
        ("chat_template.jinja", "{% for %}", "chat template is broken"),
    ],
)
def test_broken_files(tmp_path: Path, tokenizer: Tokenizer, name: str, content: str | None, message: str) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(tmp_path)


def test_other_kinds_of_tokenizers_are_refused(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="decoder is NoneType: expected ByteLevel"):
        Tokenizer.load(tmp_path)


def test_one_of_several_templates(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": several}))
    messages = [{"role": "user", "content": "hi"}]
    assert Tokenizer.load(tmp_path).apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
