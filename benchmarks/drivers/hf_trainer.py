"""HF Trainer on a Llama: ``python hf_trainer.py CASE`` (JSON), in the peer's environment. Prints step times."""

from tokens import Clock, Windows, case
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Samples(Dataset):
    """Windows as the Trainer wants them; the model shifts labels by itself."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict:
        tokens = self._windows[index]
        return {"input_ids": tokens, "labels": tokens}


class Steps(TrainerCallback):
    """Ticks after each optimizer step."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.clock.tick()


def main() -> None:
    """Train ``steps`` steps."""
    told = case()
    arguments = TrainingArguments(
        output_dir=told["directory"],
        max_steps=told["steps"],
        per_device_train_batch_size=told["micro_batch"],
        gradient_accumulation_steps=told["accumulate"],
        learning_rate=1e-4,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    count = told["steps"] * told["micro_batch"] * told["accumulate"]
    windows = Windows(told["tokens"], told["length"], count)
    model = LlamaForCausalLM(LlamaConfig(**told["model"]))
    Trainer(model=model, args=arguments, train_dataset=Samples(windows), callbacks=[Steps()]).train()


if __name__ == "__main__":
    main()
