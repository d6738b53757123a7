"""TRL's side of the DPO step benchmark: its DPOTrainer, as its users run it, on the same rows.

dpo_step.py starts it in its own process. TRL reads prompt, chosen and rejected as text, appends EOS and tokenises. The
trainer's step callbacks measure the time of one optimiser step: forward passes of policy and reference, backward pass,
clipping and AdamW.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from dpo_step_common import (
    ADAMW,
    BETA,
    MAX_LENGTH,
    METRICS,
    PAIRS,
    STEPS,
    Ids,
    Measurement,
    Stopwatch,
    read_texts,
    side_arguments,
    write_measurement,
)


class TimeSteps(transformers.TrainerCallback):
    """Measures each optimiser step with a stopwatch."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.stopwatch.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.stopwatch.stop()


class Inputs:
    """A forward hook that stores the policy's last batch."""

    def __call__(self, module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        self.ids, self.attended, self.labels = kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"]

    def pairs(self) -> list[Ids]:
        """Returns the token ids of the pairs. Rows are [chosen, rejected]; labels are -100 outside the answers."""
        rows = [ids[attended.bool()] for ids, attended in zip(self.ids, self.attended, strict=True)]
        split = [int((labels != -100).int().argmax()) for labels in self.labels]
        half = len(rows) // 2
        return [
            (rows[i][: split[i]].tolist(), rows[i][split[i] :].tolist(), rows[i + half][split[i + half] :].tolist())
            for i in range(half)
        ]


def main() -> None:
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    options = side_arguments()
    torch.set_num_threads(os.cpu_count() or 1)
    folder, file = str(Path(options.gguf).parent), Path(options.gguf).name
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),  # otherwise the trainer treats it as quantised
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    texts = read_texts(options.data)
    rows = [dict(zip(("prompt", "chosen", "rejected"), text, strict=True)) for text in texts]
    stopwatch, inputs = Stopwatch(), Inputs()
    reference = copy.deepcopy(model)
    model.register_forward_pre_hook(inputs, with_kwargs=True)

    with tempfile.TemporaryDirectory() as directory:
        trainer = trl.DPOTrainer(
            model,
            ref_model=reference,
            args=trl.DPOConfig(
                directory,
                beta=BETA,
                max_length=MAX_LENGTH,
                max_steps=STEPS,
                per_device_train_batch_size=PAIRS,
                gradient_checkpointing=options.gradient_checkpointing,
                learning_rate=ADAMW["learning_rate"],
                lr_scheduler_type="constant",
                adam_beta1=ADAMW["b1"],
                adam_beta2=ADAMW["b2"],
                adam_epsilon=ADAMW["eps"],
                weight_decay=ADAMW["weight_decay"],
                max_grad_norm=ADAMW["max_grad_norm"],
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[TimeSteps(stopwatch)],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # the driver prints the measurement
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]

    side = f"TRL {trl.__version__}, torch {torch.__version__.partition('+')[0]}"
    if options.gradient_checkpointing:
        side += ", gradient checkpointing"
    pairs = sorted(inputs.pairs(), key=lambda pair: order(pair, tokenizer, texts))
    metrics = [{name: float(log[name]) for name in METRICS} for log in logs]
    positions = inputs.ids.numel()
    write_measurement(
        Measurement(side, **stopwatch.results(), positions=positions, pairs=pairs, metrics=metrics), options.out
    )


def order(pair: Ids, tokenizer: Any, texts: list[Any]) -> int:
    """Returns a pair's row in the file, because the trainer shuffles the batch."""
    return [prompt for prompt, _, _ in texts].index(tokenizer.decode(pair[0]))


if __name__ == "__main__":
    main()
