"""Collect: read the prompts of every split, leave out those that do not fit, write them into the run."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

from rheostat import plugins
from rheostat.chat import encode_prompt
from rheostat.config import PromptsConfig, RunConfig
from rheostat.errors import InputError, PromptTooLong
from rheostat.models import Policy, identity, load_policy
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.prompts import PromptSet, read_prompts, split_held_out
from rheostat.records import Prompt
from rheostat.rundir import RunDirectory, Stage

_logger = logging.getLogger(__name__)


def collect(run: RunDirectory, config: RunConfig, *, progress: ProgressDisplay = null_progress) -> Stage:
    """Write the splits `train`, `optimization` and `generalization`, a shard each.

    No prompt of an evaluation stands among the training prompts. Raises `PromptFileError`; with `prompts.strict`
    also for a single broken line or a prompt that does not fit.
    """
    options = config.prompts
    stage = run.stage(
        "prompts",
        inputs={
            "prompts": options.model_dump(),
            "files": {source: _digest(source) for source in _sources(options)},
            "model": identity(config.model),
            "longest_response": _longest_response(config),
            "attributes": list(config.control_format.names),
        },
    )
    if stage.done:
        return stage
    with progress.task("read prompts", None, unit="prompts") as advance:
        splits, skipped, repeated = read_splits(options)
        policy = load_policy(config.model, dtype=config.dtype, device=config.device)
        summary: dict[str, object] = {"skipped_lines": skipped, "repeated": repeated}
        too_long: dict[str, int] = {}
        for split, prompts in splits.items():
            fitting = [prompt for prompt in prompts if _fits(prompt, policy, config)]
            too_long[split] = len(prompts) - len(fitting)
            if prompts and not fitting:
                raise PromptTooLong(
                    f"all {len(prompts)} {split} prompts are too long for {config.model} "
                    f"(its context is {policy.context} tokens)",
                    hint="shorten the prompts, or use a model with a longer context",
                )
            stage.write([replace(prompt, split=split) for prompt in fitting], Prompt, prefix=split)
            summary[split] = len(fitting)
            advance(len(fitting))
    if any(too_long.values()):
        _logger.warning("prompts too long for the model's context, left out: %s", too_long)
    stage.finish({**summary, "too_long": too_long})
    return stage


def read_splits(options: PromptsConfig) -> tuple[dict[str, list[Prompt]], int, int]:
    """The prompts of each split, the number of broken lines left out, and that of duplicates; no model is loaded."""
    def read(sources: str | list[str], split: str, limit: int | None) -> PromptSet:
        listed = [sources] if isinstance(sources, str) else sources
        return read_prompts(listed, split=split, limit=limit, strict=options.strict, mix=options.mix)

    held_out_here = options.optimization is None
    sets = [read(options.train, "train", None if held_out_here else options.train_limit)]
    train = list(sets[0].prompts)
    if options.optimization is None:
        halves = split_held_out(train, options.held_out)
        train = list(halves.train[: options.train_limit])
        optimization = list(halves.held_out[: options.evaluation_limit])
    else:
        sets.append(read(options.optimization, "optimization", options.evaluation_limit))
        optimization = list(sets[-1].prompts)
    generalization: list[Prompt] = []
    if options.generalization is not None:
        sets.append(read(options.generalization, "generalization", options.evaluation_limit))
        generalization = list(sets[-1].prompts)
    held_out = {prompt.id for prompt in (*optimization, *generalization)}
    train = [prompt for prompt in train if prompt.id not in held_out]
    if not train or not optimization:
        raise InputError(
            f"got {len(train)} training and {len(optimization)} held-out prompts, allowed are at least one of each",
            hint="give more prompts, or set prompts.optimization to a file of held-out prompts",
        )
    splits = {"train": train, "optimization": optimization, "generalization": generalization}
    skipped = [line for each in sets for line in each.skipped]
    if skipped:
        _logger.warning("%d broken lines left out, the first: %s", len(skipped), skipped[0])
    return splits, len(skipped), sum(each.duplicates for each in sets)


def _fits(prompt: Prompt, policy: Policy, config: RunConfig) -> bool:
    control_format = config.control_format
    longest = control_format.render(dict.fromkeys(control_format.names, 0.25))
    phrases = " ".join(max(plugins.attribute(name).phrases.values(), key=len) for name in config.rewards)
    ids = encode_prompt(
        policy.tokenizer,
        prompt.messages,
        control_text=longest + phrases,
        neutralise=control_format.neutralise,
    )
    reserve = min(_longest_response(config), policy.context // 4)
    if len(ids) + reserve <= policy.context:
        return True
    if config.prompts.strict:
        raise PromptTooLong(
            f"the prompt {prompt.text[:60]!r}… takes {len(ids)} tokens with its control, allowed are "
            f"{policy.context - reserve} (the context of {policy.context} less {reserve} for the response)",
            hint="shorten it, or leave out --strict to skip such prompts",
        )
    return False


def _longest_response(config: RunConfig) -> int:
    return max(config.generate.max_tokens, config.evaluate.max_tokens)


def _sources(options: PromptsConfig) -> list[str]:
    listed: list[str] = []
    for sources in (options.train, options.optimization, options.generalization):
        listed += [sources] if isinstance(sources, str) else sources or []
    return listed


def _digest(source: str) -> str | None:
    path = Path(source)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except (OSError, ValueError):
        return None
