"""Suite: every method answers harmful prompts and harmless ones that look harmful, over one dial. Models in, rows out.

Two-sided on purpose (after XSTest, Röttger et al. 2023, arXiv 2308.01263): a model that refuses everything does no
harm, one that answers everything refuses nobody. `suite_figures.py` makes rates of the rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rheostat import plugins
from rheostat.config import RewardConfig, RunConfig, SuiteConfig
from rheostat.generation import engine_identity
from rheostat.method_models import MethodModels, ModelFolders
from rheostat.method_name import MethodName
from rheostat.model_files import identity
from rheostat.plugins import ControlledRequest, Executor, Judged, Reward
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import Control, Prompt, SuiteRow
from rheostat.reward_tree import identify
from rheostat.rundir import RunDirectory
from rheostat.scoring import build_reward
from rheostat.shard_work import Compute
from rheostat.suite_prompts import KINDS, STAGE
from rheostat.workbench import Workbench


def settings(options: SuiteConfig, config: RunConfig) -> tuple[dict[str, float], ...]:
    """The controls of the suite: the dial at every level, the others at their highest or at every one too."""
    highest = config.control_format.resolve({})
    return tuple(
        control
        for control in config.control_format.grid()
        if options.others == "all"
        or all(control[name] == highest[name] for name in control if name != options.dial)
    )


def answer_suite(
    run: RunDirectory,
    config: RunConfig,
    bench: Workbench,
    name: MethodName,
    *,
    models: MethodModels,
    executor: Executor,
    progress: ProgressDisplay = null_progress,
) -> None:
    """The rows of a method, whose `models` have been trained."""
    assert config.suite is not None
    prompts = run.finished(STAGE)
    stage = run.stage(f"suite/{name.name}", inputs=_inputs(run, config, name, models))
    if stage.done:
        return
    started = time.perf_counter()
    answered = stage.map(
        [prompt for kind in KINDS for prompt in prompts.read(Prompt, prefix=kind)],
        SuiteWork(bench, name, models.folders),
        key=lambda prompt: prompt.id,
        row_type=SuiteRow,
        shard_size=config.evaluate.shard_prompts,
        seed=config.seed,
        label=f"suite {name.name}",
        unit="prompts",
        progress=progress,
        executor=executor,
    )
    responses = tokens = 0
    for row in stage.rows(SuiteRow):
        responses += 1
        tokens += row.generated_tokens
    stage.finish({"responses": responses, "generated_tokens": tokens})
    run.record_timing(stage.name, time.perf_counter() - started, responses=answered)


@dataclass(frozen=True, slots=True)
class SuiteWork:
    """Prompts of both kinds in; out come the answers of a method over the dial, scored for harm and for refusal."""

    bench: Workbench
    method: MethodName
    folders: ModelFolders

    def open(self) -> Compute[Prompt]:
        """Loads the method's models and the two rewards."""
        bench, config = self.bench, self.bench.config
        options = config.suite
        assert options is not None
        method = bench.method(self.method, self.folders)
        harm = None if options.harm is None else _SignedReward.load(options.harm, options.dial, config)
        refusals = _SignedReward.load(options.refusals, "refusal", config)
        controls = settings(options, config)

        def safety(judged: Sequence[Judged]) -> list[float]:
            if harm is not None:
                return harm.score(judged)
            return [scores[options.dial] for scores in bench.scorer(options.judge).score(judged)]

        def work(shard: Sequence[Prompt], seed: int) -> list[SuiteRow]:
            cells = [(prompt, control) for prompt in shard for control in controls]
            requests = [ControlledRequest(prompt.messages, control) for prompt, control in cells]
            answers = method.respond(requests, bench.sampling, seed=seed)
            judged = [
                Judged(prompt.messages, answer.completion.text)
                for (prompt, _), answer in zip(cells, answers, strict=True)
            ]
            return [
                _row(prompt, control, answer, *scores)
                for (prompt, control), answer, *scores in zip(
                    cells, answers, safety(judged), refusals.score(judged), strict=True
                )
            ]

        return work


@dataclass(frozen=True, slots=True)
class _SignedReward:
    """A reward whose raw scores are turned, where need be, so that higher is more."""

    reward: Reward
    sign: float

    @classmethod
    def load(cls, spec: RewardConfig, attribute: str, config: RunConfig) -> "_SignedReward":
        reward = build_reward(
            spec,
            attribute=attribute,
            dtype=config.dtype,
            device=config.device,
            batch_tokens=config.batch_tokens,
        )
        return cls(reward, 1.0 if spec.higher_is_better else -1.0)

    def score(self, judged: Sequence[Judged]) -> list[float]:
        return [self.sign * score for score in self.reward.score(judged)]


def _row(
    prompt: Prompt, control: Control, answer: plugins.ControlledCompletion, safety: float, refusal: float
) -> SuiteRow:
    return SuiteRow(
        prompt_id=prompt.id,
        kind=prompt.split,
        requested=dict(control),
        text=answer.completion.text,
        tokens=answer.completion.tokens,
        finish=answer.completion.finish,
        generated_tokens=answer.generated_tokens,
        safety=safety,
        refusal=refusal,
    )


def _inputs(run: RunDirectory, config: RunConfig, name: MethodName, models: MethodModels) -> dict[str, Any]:
    """What a method's rows depend on; the thresholds are applied to them later."""
    options = config.suite
    assert options is not None
    reranks = name.reranking or name.method == "reranking"
    reads_score = reranks or options.harm is None
    return {
        "prompts": run.finished(STAGE).fingerprint,
        "score": run.finished("score").fingerprint if reads_score else None,
        "model": identity(config.model),
        **models.inputs(config, name),
        "suite": options.model_dump(include={"dial", "others", "judge"}),
        "rewards": {
            key: None if spec is None else identify(spec)
            for key, spec in (("harm", options.harm), ("refusals", options.refusals))
        },
        "sampling": config.evaluate.model_dump(include={"temperature", "top_p", "max_tokens", "shard_prompts"}),
        "samples": config.evaluate.rerank_samples * reranks,
        "levels": config.control_format.levels,
        "dtype": config.dtype,
        **config.loading,
        **(engine_identity(config) if models.tuned is None else {}),
        "batch_tokens": config.batch_tokens,
        "seed": config.seed,
    }
