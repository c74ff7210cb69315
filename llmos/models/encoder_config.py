"""The shape of an encoder of the BERT family, and how its vectors are made. No torch here.

config.json says what the model is; what sentence-transformers adds (``modules.json``, ``1_Pooling/config.json``,
``sentence_bert_config.json``) says how one vector is made of those of a text's tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from llmos.errors import ModelError, UnsupportedModelError
from llmos.files import read_json
from llmos.models.checks import check_positive, is_a, wrong

Pooling = Literal["mean", "cls"]
Activation = Literal["gelu", "gelu_tanh", "relu"]

FAMILIES = ("bert", "roberta", "xlm-roberta")
"""By ``model_type``. The last two count positions from after the token of padding; else they are the first."""

POOLING_FILE = "1_Pooling/config.json"
MODULES_FILE, LENGTH_FILE = "modules.json", "sentence_bert_config.json"

_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
)
_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "max_position_embeddings": 512}
)
_ONLY: Mapping[str, Any] = MappingProxyType(
    {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
)
_MODULES = ("Transformer", "Pooling", "Normalize", "Dropout")  # the last is for training
_POOLINGS: Mapping[str, Pooling] = MappingProxyType(
    {"mean": "mean", "cls": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
)
"""By the name that sentence-transformers has for it, since its version 5 and before."""
_COPY_AGAIN = "Copy the model again."


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Raises ModelError, which names the field, for a shape that cannot be.

    ``max_tokens`` a text may have, special ones included; the model has positions for ``positions``, counted from
    ``first_position``. A vector is the mean of its tokens' (``mean``) or the first one's (``cls``), and with
    ``normalize`` 1 long. ``nested``: the first numbers of a vector are a shorter vector (Matryoshka representations).
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    positions: int
    first_position: int
    token_types: int
    norm_eps: float
    activation: Activation
    max_tokens: int
    pooling: Pooling = "mean"
    normalize: bool = True
    nested: bool = False

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_positive(name, getattr(self, name), (int,))
        check_positive("norm_eps", self.norm_eps, (int, float))
        if self.hidden_size % self.num_heads:
            raise wrong("num_heads", self.num_heads, f"a divisor of hidden_size ({self.hidden_size})")
        if not (is_a(self.first_position, (int,)) and 0 <= self.first_position < self.positions):
            raise wrong("pad_token_id", self.first_position, f"a number below the positions ({self.positions})")

    @property
    def longest(self) -> int:
        """Tokens that the model has positions for: ``max_tokens`` may be less, never more."""
        return self.positions - self.first_position

    @property
    def num_parameters(self) -> int:
        """Weights that vectors are made with: without a pooler, and without heads for other tasks."""
        hidden, wide = self.hidden_size, self.intermediate_size
        layer = 4 * (hidden * hidden + hidden) + 2 * hidden * wide + wide + hidden + 4 * hidden
        return (self.vocab_size + self.positions + self.token_types + 2) * hidden + self.num_layers * layer

    @classmethod
    def load(cls, directory: str | Path) -> EncoderConfig:
        """The encoder in ``directory``. Raises ModelError, naming the file, when something is missing or broken, and
        UnsupportedModelError for what is not computed here."""
        directory = Path(directory)
        found = {**_DEFAULTS, **_read(directory / "config.json")}
        if found.get("model_type") not in FAMILIES:
            raise _unsupported("model_type", found.get("model_type"), " or ".join(FAMILIES))
        for name, value in _ONLY.items():
            if found.get(name) not in (None, value):
                raise _unsupported(name, found[name], json.dumps(value))
        if found["hidden_act"] not in _ACTIVATIONS:
            raise _unsupported("hidden_act", found["hidden_act"], " or ".join(_ACTIVATIONS))
        first = 0 if found["model_type"] == "bert" else found.get("pad_token_id", 1) + 1
        pooling, normalize = _modules(directory)
        return cls(
            family=found["model_type"],
            vocab_size=found.get("vocab_size", 0),
            hidden_size=found.get("hidden_size", 0),
            intermediate_size=found.get("intermediate_size", 0),
            num_layers=found.get("num_hidden_layers", 0),
            num_heads=found.get("num_attention_heads", 0),
            positions=found["max_position_embeddings"],
            first_position=first,
            token_types=found["type_vocab_size"],
            norm_eps=found["layer_norm_eps"],
            activation=_ACTIVATIONS[found["hidden_act"]],
            max_tokens=_max_tokens(directory, found["max_position_embeddings"] - first),
            pooling=pooling,
            normalize=normalize,
            nested=bool(found.get("is_matryoshka") or found.get("matryoshka_dimensions")),
        )

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name, as Hugging Face has it, and shape of every weight."""
        hidden, wide = self.hidden_size, self.intermediate_size
        yield "embeddings.word_embeddings.weight", (self.vocab_size, hidden)
        yield "embeddings.position_embeddings.weight", (self.positions, hidden)
        yield "embeddings.token_type_embeddings.weight", (self.token_types, hidden)
        yield from _affine("embeddings.LayerNorm", (hidden,))
        for number in range(self.num_layers):
            layer = f"encoder.layer.{number}"
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                yield from _affine(f"{layer}.attention.{part}", (hidden, hidden))
            yield from _affine(f"{layer}.attention.output.LayerNorm", (hidden,))
            yield from _affine(f"{layer}.intermediate.dense", (wide, hidden))
            yield from _affine(f"{layer}.output.dense", (hidden, wide))
            yield from _affine(f"{layer}.output.LayerNorm", (hidden,))


_COUNTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"),
    *("positions", "token_types", "max_tokens"),
)


def is_encoder(directory: str | Path) -> bool:
    """Whether config.json in ``directory`` is that of an encoder; False if there is none, or it cannot be read."""
    try:
        found = read_json(Path(directory) / "config.json")
    except (ValueError, OSError):
        return False
    return isinstance(found, dict) and found.get("model_type") in FAMILIES


def _affine(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _modules(directory: Path) -> tuple[Pooling, bool]:
    """How vectors are pooled, and whether they are normalized. A model that says neither: the mean, normalized."""
    if not (directory / MODULES_FILE).exists():
        return "mean", True
    modules = _read(directory / MODULES_FILE, list)
    kinds = [str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else "" for module in modules]
    if other := next((kind for kind in kinds if kind not in _MODULES), None):
        raise _unsupported("modules.json", other, ", ".join(_MODULES))
    return _pooling(directory / POOLING_FILE), "Normalize" in kinds


def _pooling(path: Path) -> Pooling:
    found = _read(path)
    if "pooling_mode" in found:
        named = found["pooling_mode"] if isinstance(found["pooling_mode"], list) else [found["pooling_mode"]]
    else:
        named = [name for name, on in found.items() if on is True and name.startswith("pooling_mode_")]
    if len(named) != 1 or named[0] not in _POOLINGS:
        raise _unsupported("pooling_mode", named, "mean or cls, alone")
    return _POOLINGS[named[0]]


def _unsupported(name: str, found: object, expected: str) -> UnsupportedModelError:
    hint = "llmos computes encoders of the families BERT, RoBERTa and XLM-RoBERTa."
    return UnsupportedModelError(f"`{name}` is {json.dumps(found)[:80]}: expected {expected}", hint=hint, param=name)


def _max_tokens(directory: Path, longest: int) -> int:
    """What sentence-transformers cuts texts to, if the model says so; else all that there are positions for."""
    path = directory / LENGTH_FILE
    asked = _read(path).get("max_seq_length") if path.exists() else None
    if asked is None:
        return longest
    check_positive("max_seq_length", asked, (int,))
    return min(int(asked), longest)


def _read(path: Path, kind: type = dict) -> Any:
    try:
        found = read_json(path)
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint=_COPY_AGAIN) from error
    if not isinstance(found, kind):
        what = f"there is no {path}" if found is None else f"{path} is not what it should be"
        expected = "an object" if kind is dict else "a list of modules"
        raise ModelError(f"{what}; expected {expected}, as sentence-transformers writes it", hint=_COPY_AGAIN)
    return found
