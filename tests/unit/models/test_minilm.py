"""all-MiniLM-L6-v2, the encoder that most people have used: the vectors of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.frontdoor import minilm
from benchmarks.peers import Missing
from llmos.models.encoder import Encoder
from llmos.models.encoder_tokenizer import EncoderTokenizer

TEXTS = [
    "A man is eating food.",
    "Naïve café – Größe 漢字 🦙, and [SEP] as text",
    "The weather is lovely today. " * 60,
    "x",
]


@pytest.fixture(scope="module")
def directory() -> Path:
    try:
        return minilm.directory()
    except Missing as missing:
        pytest.skip(str(missing))


def test_vectors_are_those_of_transformers(directory: Path) -> None:
    import transformers

    texts = EncoderTokenizer.load(directory).encode(TEXTS, longest=256)
    ours_ND = Encoder(directory).vectors(texts)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    for text, vector_D in zip(texts, ours_ND, strict=True):
        with torch.no_grad():
            theirs_D = model(input_ids=torch.tensor([text])).last_hidden_state[0].mean(0)
        assert 1 - torch.nn.functional.cosine_similarity(vector_D, theirs_D, dim=0) < 1e-4


def test_tokens_are_those_of_transformers(directory: Path) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    plain = [text for text in TEXTS if "[SEP]" not in text]  # which is text here, and a control token there
    expected = [tuple(theirs(text, truncation=True, max_length=256)["input_ids"]) for text in plain]
    assert EncoderTokenizer.load(directory).encode(plain, longest=256) == expected


def test_near_meanings_are_near(directory: Path) -> None:
    texts = EncoderTokenizer.load(directory).encode(["The cat sits outside", "A cat is outdoors", "Stocks fell today"])
    a_D, b_D, c_D = Encoder(directory).vectors(texts)
    assert float(a_D @ b_D) > 0.6 > 0.3 > float(a_D @ c_D)
