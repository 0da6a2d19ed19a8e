"""Fit: a small reward model from preference pairs or labelled responses. A file of rows in, a model directory out.

Pairs: −log σ(r(chosen) − r(rejected)) (Bradley & Terry 1952), by TRL's RewardTrainer. Labels: the binary
cross-entropy of the one logit, by transformers' Trainer. Either way the model reads exactly what `kind: classifier`
will show it, and a part of the conversations, by content hash, is held out to measure it.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from rheostat.checkpoints import Advance, last_checkpoint
from rheostat.config import Dtype
from rheostat.errors import InputError, ModelError
from rheostat.model_files import identity, quiet
from rheostat.models import Classifier, load_untrained_classifier
from rheostat.plugins import Judged
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.reward_data import RewardData
from rheostat.reward_metrics import auc, pairwise_accuracy
from rheostat.rewards._encoding import encode
from rheostat.rewards.classifier import ClassifierReward
from rheostat.storage import read_object, write_json

if TYPE_CHECKING:
    from rheostat.rewards._logits import Row

CARD = "reward.json"
"""The file beside the weights that says what the model was fitted on and how well it does."""
_STATE = "fit.json"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a reward model is fitted; `held_out` is a share of the conversations, `steps` replaces `epochs`."""

    epochs: float = 2.0
    steps: int | None = None
    learning_rate: float = 1e-4
    batch_size: int = 16
    held_out: float = 0.1
    seed: int = 0
    save_steps: int = 100
    dtype: Dtype = "float32"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model's directory and its card."""

    directory: Path
    card: Mapping[str, Any]


def fit(
    data: RewardData,
    base: str,
    directory: Path,
    *,
    name: str,
    options: FitOptions,
    positive: str | None = None,
    device: str = "auto",
    batch_tokens: int = 16384,
    progress: ProgressDisplay = null_progress,
) -> Fitted:
    """Fit `base`'s trunk under a new head, and write the model with its card; what is there already is not done again.

    `name` is the data's, for the card. A killed fit resumes from its last checkpoint when it is started again with
    the same data and options. Raises `InputError` where `directory` holds something else or a part is empty.
    """
    inputs = {
        "data": data.digest,
        "rows": len(data),
        "kind": data.kind,
        "positive": positive,
        "base": identity(base),
        "options": asdict(options),
    }
    fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    if _claim(directory, fingerprint):
        return Fitted(directory, read_object(directory / CARD))
    train, held_out = (data.part(options.held_out, is_held_out=each) for each in (False, True))
    if not len(train) or not len(held_out):
        raise InputError(
            f"{name}: got {len(train)} rows to learn from and {len(held_out)} held out, allowed is one or more each",
            hint="give more rows, or another --held-out",
        )
    started = time.perf_counter()
    classifier = load_untrained_classifier(base, dtype=options.dtype, device=device, seed=options.seed)
    checkpoints = directory / "checkpoints"
    steps = _train(classifier, train, options, checkpoints, progress)
    classifier.model.eval()
    figures = measure(ClassifierReward(classifier, batch_tokens), held_out, progress=progress)
    card = {
        "kind": data.kind,
        "data": {"name": name, "sha256": data.digest, "positive": positive},
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        "held_out": options.held_out,
        "higher_is_better": True,
        "raw": "logit",
        "base": base,
        "steps": steps,
        "options": asdict(options),
        "seconds": round(time.perf_counter() - started, 1),
        "measured_on_held_out": figures,
    }
    with quiet():
        classifier.model.save_pretrained(directory)
        classifier.tokenizer.save_pretrained(directory)
    write_json(directory / CARD, card)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Fitted(directory, card)


def measure(
    reward: ClassifierReward, data: RewardData, *, progress: ProgressDisplay = null_progress
) -> dict[str, Any]:
    """A card's figures: pairwise accuracy or AUC with its interval, and the range of the scores."""
    items = judged(data)
    with progress.task("measure", len(items), unit="responses") as advance:
        scores = reward.score(items, progress=advance)
    figures: dict[str, Any] = {"low": min(scores), "high": max(scores)}
    if data.pairs:
        return figures | {"pairwise_accuracy": pairwise_accuracy(scores[0::2], scores[1::2])._asdict()}
    truths = [each.is_positive for each in data.labelled]
    if all(truths) or not any(truths):
        return figures | {"auc": None}
    positive = [score for score, truth in zip(scores, truths, strict=True) if truth]
    negative = [score for score, truth in zip(scores, truths, strict=True) if not truth]
    return figures | {"auc": auc(positive, negative)._asdict()}


def judged(data: RewardData) -> list[Judged]:
    """What is to be scored: chosen and rejected by turns, or each labelled response."""
    pairs = [side for pair in data.pairs for side in (pair.chosen, pair.rejected)]
    return pairs or [each.item for each in data.labelled]


def _claim(directory: Path, fingerprint: str) -> bool:
    """Whether the directory holds this fit, finished; it is made ready for it otherwise."""
    state = directory / _STATE
    if state.is_file() and read_object(state).get("fingerprint") == fingerprint:
        return (directory / CARD).is_file()
    if directory.exists() and any(directory.iterdir()):
        raise InputError(
            f"--to: got {str(directory)!r}, which holds "
            f"{'a fit of other data or options' if state.is_file() else 'something else'}; allowed is an empty or new "
            "directory",
            hint="name another directory, or remove that one",
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(state, {"fingerprint": fingerprint})
    return False


def _train(
    classifier: Classifier,
    data: RewardData,
    options: FitOptions,
    checkpoints: Path,
    progress: ProgressDisplay,
) -> int:
    """Train in place; gives the number of steps."""
    encoded = encode(classifier, judged(data))
    if encoded.cut:
        _logger.warning(
            "%s: %d of %d conversations exceed its context of %d tokens; their beginning is cut",
            classifier.name,
            encoded.cut,
            len(encoded.rows),
            classifier.context,
        )
    steps = options.steps or max(1, round(options.epochs * len(data) / options.batch_size))
    common: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, steps // 20),
        "optim": "adamw_torch_fused",
        "save_steps": options.save_steps,
        "save_total_limit": 1,
        "logging_steps": 10,
        "seed": options.seed,
        "bf16": options.dtype == "bfloat16",
        "use_cpu": classifier.device.type == "cpu",
        "dataloader_pin_memory": False,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "train_sampling_strategy": "group_by_length",
        "remove_unused_columns": False,
        "label_names": [],
    }
    with quiet(), progress.task("fit", steps, unit="steps") as advance:
        make = _pair_trainer if data.pairs else _label_trainer
        trainer = make(classifier, data, encoded.rows, common, Advance(advance))
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    return steps


def _pair_trainer(
    classifier: Classifier,
    data: RewardData,
    rows: "Sequence[Row]",
    arguments: Mapping[str, Any],
    advance: Advance,
) -> Any:
    """TRL's RewardTrainer on token rows that are made already. Raises `ModelError` where it cannot serve."""
    try:
        from datasets import Dataset as Table
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        raise ModelError(
            f"pairs are fitted by TRL's RewardTrainer, which is not here: {error}",
            hint="pip install 'rheostat[rlhf]'",
        ) from error
    if set(rows[0]) - {"input_ids", "attention_mask"}:
        raise ModelError(
            f"{classifier.name}: got a model that reads {', '.join(rows[0])}, which TRL's RewardTrainer does not give",
            hint="take a decoder as the base, or fit it on labels",
        )
    table = Table.from_dict(
        {
            "chosen_ids": [row["input_ids"] for row in rows[0::2]],
            "rejected_ids": [row["input_ids"] for row in rows[1::2]],
            "length": [
                max(len(row["input_ids"]) for row in rows[at : at + 2]) for at in range(0, len(rows), 2)
            ],
        }
    )
    return RewardTrainer(
        model=classifier.model,
        # None, not False: transformers 5.24 warns of the older name where it is given.
        args=RewardConfig(**arguments, max_length=None, gradient_checkpointing=None),
        train_dataset=table,
        processing_class=classifier.tokenizer,
        callbacks=[advance],
    )


def _label_trainer(
    classifier: Classifier,
    data: RewardData,
    rows: "Sequence[Row]",
    arguments: Mapping[str, Any],
    advance: Advance,
) -> Any:
    truths = [each.is_positive for each in data.labelled]
    return _LabelTrainer(
        model=classifier.model,
        args=TrainingArguments(**arguments),
        train_dataset=_LabelledRows(rows, truths),
        data_collator=lambda items: _padded(items, classifier.model.config.pad_token_id),
        callbacks=[advance],
    )


class _LabelledRows(Dataset[dict[str, Any]]):
    """Token rows, each with its `truth`."""

    def __init__(self, rows: "Sequence[Row]", truths: Sequence[bool]) -> None:
        self._rows = rows
        self._truths = truths

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._rows[index], "truth": float(self._truths[index])}


def _padded(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Right-padded inputs, `(rows, longest)` each, and `truth` `(rows,)`, 0 or 1."""
    width = max(len(row["input_ids"]) for row in items)
    fill = dict.fromkeys((name for name in items[0] if name != "truth"), 0) | {"input_ids": pad_id}
    inputs = {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in items])
        for name, value in fill.items()
    }
    return inputs | {"truth": torch.tensor([row["truth"] for row in items])}


class _LabelTrainer(Trainer):  # type: ignore[misc]
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False  # the loss is a mean already

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """Binary cross-entropy of the logit."""
        assert not return_outputs
        given = {name: each for name, each in inputs.items() if name != "truth"}
        logits = model(**given).logits[:, 0].float()
        return binary_cross_entropy_with_logits(logits, inputs["truth"].to(logits))
