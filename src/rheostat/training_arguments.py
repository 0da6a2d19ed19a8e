"""What every Trainer here is given: a recipe's block `train` in the words of transformers."""

from pathlib import Path
from typing import Any

from rheostat.config import RunConfig, TrainConfig

LOG_STEPS = 10
"""Steps between two entries of a training's log."""


def training_arguments(
    options: TrainConfig, config: RunConfig, checkpoints: Path, *, steps: int, on_cpu: bool
) -> dict[str, Any]:
    """Arguments of `transformers.TrainingArguments`, or of a class below it, by name."""
    return {
        "output_dir": str(checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": 1,  # an item of the data is a whole planned batch
        "learning_rate": float(options.learning_rate),
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(steps * options.warmup_ratio),
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "optim": "adamw_torch_fused",
        "save_steps": options.save_steps,
        "save_total_limit": 1,
        "logging_steps": LOG_STEPS,
        "seed": config.seed,
        "bf16": config.dtype == "bfloat16" or options.mixed_precision,
        "use_cpu": on_cpu,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": False,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "remove_unused_columns": False,
        "label_names": [],
    }
