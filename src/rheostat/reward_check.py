"""Check: how good a reward is on preference pairs or labelled responses, and whether its sign is right."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rheostat import yaml_text
from rheostat.config import Dtype, RewardConfig, expand_reward
from rheostat.errors import ConfigError, InputError
from rheostat.model_files import resolve
from rheostat.plugins import Reward
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.recipe import block_problems, reward_problems
from rheostat.reward_data import RewardData
from rheostat.reward_fit import CARD, judged
from rheostat.reward_metrics import (
    agreement,
    auc,
    balanced_accuracy,
    calibration_curve,
    expit,
    logit,
    pairwise_accuracy,
    pairwise_agreement,
)
from rheostat.reward_tree import load_problems
from rheostat.scoring import build_reward

if TYPE_CHECKING:
    from rheostat.reward_metrics import Array, Curve

_THRESHOLDS = {"sigmoid": 0.0, "quantile": 0.0, "identity": 0.5}
"""Where a score says as much for as against, on the reward's own scale: a logit of 0, a probability of one half."""


def parse_reward(text: str) -> RewardConfig:
    """A reward on the command line: a model, `python:MODULE:FUNCTION`, or a block in YAML, `{kind: guard, …}`.

    Raises `ConfigError` with everything that is wrong with it.
    """
    try:
        given = yaml_text.parse(text) if text.lstrip().startswith("{") else text
    except ValueError as error:
        raise ConfigError([f"reward: got {text!r}; {error}"], hint="write a block as {kind: guard, model: …}") from None
    block = expand_reward(given)
    found = [*block_problems("reward", block), *reward_problems("reward", block)]
    if not found:
        spec = RewardConfig.model_validate(block)
        found = list(load_problems("reward", spec))
    if found:
        raise ConfigError(found, hint="docs/rewards.md has the keys of every kind")
    return spec


def learned_from(spec: RewardConfig, data: RewardData) -> float | None:
    """The share that a fitted reward held out of this very file, off its card; None where it learned from another."""
    if spec.kind != "classifier" or spec.model is None:
        return None
    path = Path(resolve(spec.model)) / CARD
    if not path.is_file():
        return None
    card = json.loads(path.read_text(encoding="utf-8"))
    return float(card["held_out"]) if card["data"]["sha256"] == data.digest else None


def check(
    spec: RewardConfig,
    data: RewardData,
    *,
    name: str,
    against: RewardConfig | None = None,
    attribute: str = "safety",
    dtype: Dtype = "float32",
    device: str = "auto",
    batch_tokens: int = 16384,
    progress: ProgressDisplay = null_progress,
) -> dict[str, Any]:
    """The figures as a JSON object (docs/rewards.md has its keys); `name` is the data's.

    Raises `InputError` where labels are all alike.
    """
    if data.labelled and len({each.is_positive for each in data.labelled}) < 2:
        raise InputError(
            f"{name}: got {len(data)} labels that are all alike, allowed are both",
            hint="give rows of both labels",
        )
    scores = _scores(spec, data, "check", attribute, dtype, device, batch_tokens, progress)
    document: dict[str, Any] = {
        "data": {"name": name, "sha256": data.digest, "kind": data.kind, "rows": len(data)},
        "reward": spec.model_dump(),
        "scores": {
            "low": min(scores),
            "high": max(scores),
            "mean": sum(scores) / len(scores),
            "distinct": len(set(scores)),
        },
    }
    oriented = _oriented(spec, scores)
    figures, curve = _on_pairs(spec, oriented) if data.pairs else _on_labels(spec, oriented, data)
    headline = figures["pairwise_accuracy" if data.pairs else "auc"]
    document |= figures
    document["calibration"] = {"error": curve.error, "bins": [asdict(each) for each in curve.bins]}
    document["sign"] = {"higher_is_better": spec.higher_is_better, "looks_wrong": headline["value"] < 0.5}
    if against is not None:
        others = _scores(against, data, "check against", attribute, dtype, device, batch_tokens, progress)
        document["agreement"] = _agreement(oriented, _oriented(against, others), data)
    return document


def _scores(
    spec: RewardConfig,
    data: RewardData,
    label: str,
    attribute: str,
    dtype: Dtype,
    device: str,
    batch_tokens: int,
    progress: ProgressDisplay,
) -> list[float]:
    reward: Reward = build_reward(
        spec, attribute=attribute, dtype=dtype, device=device, batch_tokens=batch_tokens
    )
    items = judged(data)
    with progress.task(label, len(items), unit="responses") as advance:
        return reward.score(items, progress=advance)


def _oriented(spec: RewardConfig, scores: Sequence[float]) -> list[float]:
    """Higher is more of the attribute; of a probability in [0, 1] its complement stays one."""
    if spec.higher_is_better:
        return list(scores)
    return [1 - score if spec.calibration == "identity" else -score for score in scores]


def _on_pairs(spec: RewardConfig, scores: Sequence[float]) -> "tuple[dict[str, Any], Curve]":
    chosen, rejected = scores[0::2], scores[1::2]
    odds = logit(scores) if spec.calibration == "identity" else scores
    margins = [float(odds[at]) - float(odds[at + 1]) for at in range(0, len(scores), 2)]
    # Of each pair the response that the reward prefers, with how sure it is: from ½ to 1.
    curve = calibration_curve(expit([abs(each) for each in margins]), [each > 0 for each in margins])
    ties = sum(first == second for first, second in zip(chosen, rejected, strict=True))
    return {"pairwise_accuracy": pairwise_accuracy(chosen, rejected)._asdict(), "ties": ties}, curve


def _on_labels(
    spec: RewardConfig, scores: Sequence[float], data: RewardData
) -> "tuple[dict[str, Any], Curve]":
    truths = [each.is_positive for each in data.labelled]
    positive = [score for score, truth in zip(scores, truths, strict=True) if truth]
    negative = [score for score, truth in zip(scores, truths, strict=True) if not truth]
    threshold = _THRESHOLDS[spec.calibration]
    probabilities: Array | Sequence[float] = scores if spec.calibration == "identity" else expit(scores)
    figures = {
        "auc": auc(positive, negative)._asdict(),
        "balanced_accuracy": balanced_accuracy(scores, truths, threshold),
        "threshold": threshold,
        "positives": len(positive),
        "negatives": len(negative),
    }
    return figures, calibration_curve(probabilities, truths)


def _agreement(first: Sequence[float], second: Sequence[float], data: RewardData) -> dict[str, Any]:
    found: dict[str, Any] = asdict(agreement(first, second))
    if data.pairs:
        margins = [
            [each[at] - each[at + 1] for at in range(0, len(each), 2)] for each in (first, second)
        ]
        found["pairs_ordered_alike"] = pairwise_agreement(margins[0], margins[1])
    return found


def sign_warning(document: Mapping[str, Any]) -> str | None:
    """What to say where the reward ranks worse than chance; None where it does not."""
    if not document["sign"]["looks_wrong"]:
        return None
    is_pairs = document["data"]["kind"] == "pairs"
    figure = document["pairwise_accuracy" if is_pairs else "auc"]
    sure = "its whole 95 % interval is" if figure["high"] < 0.5 else "though its 95 % interval reaches beyond"
    return (
        f"THE SIGN LOOKS WRONG: {'pairwise accuracy' if is_pairs else 'AUC'} {figure['value']:.3f} is below one half "
        f"({sure}); set higher_is_better to {'false' if document['sign']['higher_is_better'] else 'true'}, or check "
        "which response or label the data call better"
    )
