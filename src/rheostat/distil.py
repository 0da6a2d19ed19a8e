"""The stage `distil`: scored responses become training examples, or pairs of responses.

Which of them, and under which control: `moec.py`; which two make a pair: `pairing.py`, and in which mix: `mixing.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from rheostat.config import MixingConfig, RunConfig
from rheostat.errors import InputError
from rheostat.method_name import TrainingData
from rheostat.mixing import mixed
from rheostat.moec import Distilled, moec, raw, whole_pool
from rheostat.pairing import Paired, pairs
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.prompt_classes import classes_of, mixing_identity
from rheostat.records import Example, Pair, Prompt, ScoredResponse, by_prompt
from rheostat.rundir import RunDirectory, Stage
from rheostat.scored_pool import usable_pool


def distil(
    run: RunDirectory, config: RunConfig, data: TrainingData, *, progress: ProgressDisplay = null_progress
) -> Stage:
    """The stage: the scored pool in, training examples of one variant, or pairs of responses, out.

    The pool of a further round is that of the first with what each round has added since. A share below 1 keeps the
    pool of the first prompts only, in the order of their collection. `raw` has as many
    examples as `moec` keeps, so that both cost the same training. Raises `InputError` where nothing is left to
    learn from.
    """
    form = config.control_format
    scored = run.finished("score")
    mixing = _mixing(config, data)
    further = [run.finished(f"{each.round_stage}/score") for each in data.further]
    stage = run.stage(
        data.stage,
        inputs={
            "score": scored.fingerprint,
            "distil": config.distil.model_dump(exclude={"pairs", "raw_decimals"}),
            "levels": form.levels,
            "seed": config.seed,
            **({"outside": "left out"} if form.is_restricted else {}),
            **({"pairs": config.distil.pairs.model_dump()} if data.variant == "pairs" else {}),
            **_unquantised_inputs(config, data),
            **({} if mixing is None else {"mixing": mixing_identity(mixing)}),
            **({"rounds": [each.fingerprint for each in further], "pools": config.rounds.pools} if further else {}),
        },
    )
    if stage.done:
        return stage
    with progress.task(f"distil {data}", None, unit="rows") as advance:
        collected = run.finished("prompts").read(Prompt, prefix="train")
        prompts = {prompt.id: prompt for prompt in data.first(collected)}
        rows = chain.from_iterable(each.rows(ScoredResponse) for each in (scored, *further))
        pool = by_prompt(row for row in rows if row.prompt_id in prompts)
        if data.variant == "pairs":
            found = _paired(pool, prompts, config, data)
            summary, kept_pairs = asdict(found.counts), found.pairs
            if mixing is not None:
                having = {pair.prompt_id for pair in found.pairs}
                classes = classes_of([prompts[prompt_id] for prompt_id in sorted(having)], mixing)
                mix = mixed(found.pairs, classes, mixing.ratios, seed=config.seed)
                kept_pairs = mix.pairs
                summary["classes"] = {name: asdict(counts) for name, counts in mix.counts.items()}
            stage.write(kept_pairs, Pair)
            advance(len(kept_pairs))
            stage.finish(summary)
            return stage
        kept = _distilled(pool, prompts, config, data)
        stage.write(kept.examples, Example)
        advance(len(kept.examples))
    stage.finish({name: count for name, count in asdict(kept.counts).items() if count or name != "outside_dropped"})
    return stage


def _distilled(
    pool: Mapping[str, Sequence[ScoredResponse]],
    prompts: Mapping[str, Prompt],
    config: RunConfig,
    data: TrainingData,
) -> Distilled:
    """The examples of a variant. Raises `InputError` where there is none."""
    form = config.control_format
    if data.variant == "pool":
        kept = whole_pool(
            pool,
            prompts,
            control_format=form,
            keep_truncated=config.distil.keep_truncated,
            decimals=config.distil.raw_decimals,
        )
    else:
        apart = data.further if config.rounds.pools == "apart" else ()
        kept = moec(
            pool,
            prompts,
            control_format=form,
            options=config.distil,
            further_from=[config.rounds.first_sample(each.round, pool=config.generate.samples) for each in apart],
        )
    if data.variant == "raw":
        kept = raw(
            pool,
            prompts,
            control_format=form,
            count=len(kept.examples),
            seed=config.seed,
            keep_truncated=config.distil.keep_truncated,
            decimals=config.distil.raw_decimals,
        )
    if not kept.examples:
        raise InputError(
            f"no training example is left of {kept.counts.pool} responses: {kept.counts.empty_dropped} were "
            f"empty, {kept.counts.truncated_dropped} cut off at max_tokens, "
            f"{kept.counts.outside_dropped} outside the levels, "
            f"{kept.counts.prompts_without_contrast} prompts had no contrast",
            hint="raise generate.samples or generate.max_tokens, lower distil.minimum_contrast, or, for a model "
            "that never ends an answer, set distil.keep_truncated=true",
        )
    return kept


def _unquantised_inputs(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    """What examples under unquantised scores depend on besides; runs of before there was a choice had the default."""
    decimals = config.distil.raw_decimals
    is_default = decimals == type(config.distil).model_fields["raw_decimals"].default
    return {} if data.variant not in ("raw", "pool") or is_default else {"decimals": decimals}


def _mixing(config: RunConfig, data: TrainingData) -> MixingConfig | None:
    """How pairs are mixed by the class of their prompt; None where they are not to be."""
    assert config.mixing is not None or not data.mixed, data
    return config.mixing if data.mixed else None


def _paired(
    pool: Mapping[str, Sequence[ScoredResponse]],
    prompts: Mapping[str, Prompt],
    config: RunConfig,
    data: TrainingData,
) -> Paired:
    """The pairs. Raises `InputError` where there is none."""
    usable = usable_pool(
        pool, config.control_format, with_repeats=False, with_truncated=config.distil.keep_truncated
    )
    found = pairs(
        usable, prompts, control_format=config.control_format, by=data.by, options=config.distil.pairs, seed=config.seed
    )
    if not found.pairs:
        raise InputError(
            f"no pair is left of {found.counts.pool} responses: {found.counts.prompts_without_pairs} prompts had no "
            f"two that differ by {config.distil.pairs.minimum_gap:g}",
            hint="raise generate.samples, or lower distil.pairs.minimum_gap",
        )
    return found
