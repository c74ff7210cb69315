"""Tiny encoders with random weights, as transformers and sentence-transformers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "##s", "##ing", "run", "[", "]", "cls", "sep", ",", ".")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 40},
}


def write_encoder(
    directory: Path,
    *,
    family: str = "bert",
    head: str = "Model",
    pooling: str | None = "mean",
    normalize: bool = True,
    config: dict[str, Any] | None = None,
) -> Any:
    """A model of ``family`` with ``head`` (``Model`` or ``ForMaskedLM``), which is returned too.

    ``pooling`` None leaves out what sentence-transformers adds.
    """
    import transformers

    name = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[family]
    shape = transformers.AutoConfig.for_model(
        family, **{"vocab_size": len(SPECIAL) + len(WORDS), **SHAPE, **(config or {})}
    )
    torch.manual_seed(0)
    model = getattr(transformers, name + head)(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # else norms are 1 and biases 0, and what is mixed up is not seen
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    if pooling is not None:
        write_modules(directory, pooling, normalize)
    return model


def write_tokenizer(directory: Path) -> None:
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    around = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=around
    )
    tokenizer.enable_truncation(8)  # as files often have it: nothing may be cut because of it
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_modules(directory: Path, pooling: str, normalize: bool) -> None:
    kinds = ["models.Transformer", "models.Pooling", *(["models.Normalize"] if normalize else [])]
    modules = [
        {"idx": number, "name": str(number), "path": "", "type": f"sentence_transformers.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    flag = {"mean": "mean_tokens", "cls": "cls_token"}.get(pooling, pooling)
    flags = {f"pooling_mode_{name}": name == flag for name in {"mean_tokens", "cls_token", "max_tokens", flag}}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
