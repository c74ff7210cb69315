"""litgpt's pretraining of a Llama: ``python litgpt_pretrain.py CASE`` (JSON), in the peer's environment.

Prints step times.
"""

from dataclasses import dataclass, field
from pathlib import Path

from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import setup
from tokens import Clock, Windows, case
from torch.utils.data import DataLoader, Dataset


class Timed(Dataset):
    """``windows``; asking for the first sample of a step ends the one before."""

    def __init__(self, windows: Windows, step: int) -> None:
        self._windows, self._step, self._clock = windows, step, Clock()

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> object:
        if index % self._step == 0:
            self._clock.tick()
        return self._windows[index]


@dataclass
class Random(DataModule):
    """Windows of one file, in one order."""

    told: dict = field(default_factory=dict)

    def connect(self, tokenizer: object = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self._batch = batch_size

    def train_dataloader(self) -> DataLoader:
        """The windows that are trained on, timed."""
        told, step = self.told, self._batch * self.told["accumulate"]
        windows = Windows(told["tokens"], told["length"] + 1, (told["steps"] + 1) * step)
        return DataLoader(Timed(windows, step), batch_size=self._batch)

    def val_dataloader(self) -> DataLoader:
        """Two samples: litgpt looks at them before it begins."""
        return DataLoader(Windows(self.told["tokens"], self.told["length"] + 1, 2), batch_size=1)


def main() -> None:
    """Train ``steps`` steps."""
    told, model = case(), case()["model"]
    config = Config(
        name="llama",
        block_size=told["length"],
        vocab_size=model["vocab_size"],
        padded_vocab_size=model["vocab_size"],
        n_layer=model["num_hidden_layers"],
        n_head=model["num_attention_heads"],
        n_query_groups=model["num_key_value_heads"],
        n_embd=model["hidden_size"],
        head_size=model["head_dim"],
        intermediate_size=model["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    step = told["micro_batch"] * told["accumulate"]
    train = TrainArgs(
        global_batch_size=step,
        micro_batch_size=told["micro_batch"],
        max_tokens=told["steps"] * step * told["length"],
        max_seq_length=told["length"],
        max_norm=1.0,
        min_lr=1e-5,
        lr_warmup_steps=1,
        log_interval=1,
        save_interval=None,
        tie_embeddings=model["tie_word_embeddings"],
    )
    setup(
        model_name="llama",
        model_config=config,
        out_dir=Path(told["directory"]),
        precision="32-true",
        data=Random(told=told),
        train=train,
        eval=EvalArgs(interval=10**9, max_iters=1, initial_validation=False, final_validation=False),
        devices=1,
        logger_name="csv",
    )


if __name__ == "__main__":
    main()
