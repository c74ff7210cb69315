"""An encoder of the BERT family (arXiv 1810.04805): texts of any lengths, one after another, each to one vector.

Nothing is padded: what treats each token alone computes all tokens as rows of one matrix, and attention takes texts of
one length together. Suffixes of tensors: T tokens of all texts, N texts, L tokens of a text, D features, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.errors import UsageError
from llmos.models.encoder_config import Activation, EncoderConfig
from llmos.models.encoder_weights import places
from llmos.models.weight_files import opened

_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu_,
}


@dataclass(frozen=True, slots=True)
class Affine:
    """A matrix [outputs, inputs] or a norm's scale [D], and what is added."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """Attention and feed-forward; each is added to its input, and the sum is normalized."""

    qkv: Affine
    out: Affine
    attention_norm: Affine
    up: Affine
    down: Affine
    norm: Affine


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` texts of ``length`` tokens, one after another, from token ``first`` on."""

    first: int
    count: int
    length: int

    @property
    def tokens(self) -> slice:
        """Where they are."""
        return slice(self.first, self.first + self.count * self.length)


class Encoder:
    """The encoder in ``directory``, in ``dtype``, on ``device``. Raises ModelError, naming the file and what was
    expected, unless exactly the weights that config.json calls for are there, whole, in plain floats."""

    def __init__(
        self, directory: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config = EncoderConfig.load(directory)
        self.device = torch.device(device)
        read = _weights(Path(directory), config, dtype, self.device)
        self._words_VD = read["embeddings.word_embeddings.weight"]
        types_D = read["embeddings.token_type_embeddings.weight"][0]  # a text alone is the first of two
        self._positions_LD = read["embeddings.position_embeddings.weight"][config.first_position :] + types_D
        self._norm = _affine(read, "embeddings.LayerNorm")
        self._layers = [_layer(read, f"encoder.layer.{number}") for number in range(config.num_layers)]
        self._activate = _ACTIVATIONS[config.activation]

    @torch.inference_mode()
    def vectors(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The vector of each of ``texts``, [N, D], float32, on the device. It is quickest when they are sorted by
        length: neighbours of one length are taken together. Raises UsageError for an empty or a too long one."""
        hidden_TD, runs = self._hidden(texts)
        pooled_ND = torch.cat([self._pooled(hidden_TD, run) for run in runs]).float()
        return F.normalize(pooled_ND, dim=1) if self.config.normalize else pooled_ND

    def _hidden(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, list[Run]]:
        """What the last layer makes of every token, [T, D], and which tokens are of texts of one length."""
        config, runs = self.config, _runs([len(text) for text in texts], self.config.longest)
        tokens_T = torch.tensor([token for text in texts for token in text], device=self.device)
        ranges = [torch.arange(run.length, device=self.device).repeat(run.count) for run in runs]
        x_TD = self._words_VD[tokens_T].add_(self._positions_LD[torch.cat(ranges)])
        x_TD = self._normed(x_TD, self._norm)
        attended_TD = torch.empty_like(x_TD)
        for layer in self._layers:
            qkv_T3HE = F.linear(x_TD, layer.qkv.weight, layer.qkv.bias).view(len(x_TD), 3, config.num_heads, -1)
            for run in runs:
                _attend(qkv_T3HE[run.tokens], attended_TD[run.tokens], run)
            x_TD = self._normed(
                F.linear(attended_TD, layer.out.weight, layer.out.bias).add_(x_TD), layer.attention_norm
            )
            wide_TF = self._activate(F.linear(x_TD, layer.up.weight, layer.up.bias))
            x_TD = self._normed(F.linear(wide_TF, layer.down.weight, layer.down.bias).add_(x_TD), layer.norm)
        return x_TD, runs

    def _normed(self, x_TD: Tensor, norm: Affine) -> Tensor:
        return F.layer_norm(x_TD, (self.config.hidden_size,), norm.weight, norm.bias, self.config.norm_eps)

    def _pooled(self, hidden_TD: Tensor, run: Run) -> Tensor:
        hidden_NLD = hidden_TD[run.tokens].view(run.count, run.length, -1)
        if self.config.pooling == "cls":
            return hidden_NLD[:, 0]
        return hidden_NLD.mean(1, dtype=torch.float32)


def _attend(qkv_T3HE: Tensor, out_TD: Tensor, run: Run) -> None:
    """Attention of the texts of ``run``, each token to all of its text, into ``out_TD``."""
    q, k, v = qkv_T3HE.view(run.count, run.length, 3, *qkv_T3HE.shape[2:]).permute(2, 0, 3, 1, 4)  # each [N, H, L, E]
    found_NHLE = F.scaled_dot_product_attention(q, k, v)
    out_TD.view(run.count, run.length, *qkv_T3HE.shape[2:]).copy_(found_NHLE.transpose(1, 2))


def _runs(lengths: Sequence[int], longest: int) -> list[Run]:
    """Neighbours of one length. Raises UsageError for a text without tokens, or of more than ``longest``."""
    runs, first = [], 0
    for length, same in groupby(lengths):
        if not 0 < length <= longest:
            raise UsageError(f"a text has {length} tokens: expected 1 to {longest}, as the model has positions")
        runs.append(Run(first, sum(1 for _ in same), length))
        first += runs[-1].count * length
    return runs


def _weights(directory: Path, config: EncoderConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    found, read = places(directory, config), dict[str, Tensor]()
    for path in dict.fromkeys(place.path for place in found.values()):
        with opened(path, "pt") as file:
            for name, place in found.items():
                if place.path == path:
                    read[name] = file.get_tensor(place.name).to(device, dtype)
    return read


def _affine(read: Mapping[str, Tensor], name: str) -> Affine:
    return Affine(read[f"{name}.weight"], read[f"{name}.bias"])


def _layer(read: Mapping[str, Tensor], name: str) -> Layer:
    parts = [_affine(read, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
    return Layer(
        qkv=Affine(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])),
        out=_affine(read, f"{name}.attention.output.dense"),
        attention_norm=_affine(read, f"{name}.attention.output.LayerNorm"),
        up=_affine(read, f"{name}.intermediate.dense"),
        down=_affine(read, f"{name}.output.dense"),
        norm=_affine(read, f"{name}.output.LayerNorm"),
    )
