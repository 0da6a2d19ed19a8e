"""Evaluate: every method answers every held-out prompt under every control, and is scored. Models in, rows out.

The *optimization evaluation* (arXiv 2404.01295) takes held-out prompts of the training distribution, scored by the
rewards that labelled the data; the *generalization evaluation* other prompts, scored by judges that labelled nothing.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rheostat import plugins
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import RunConfig
from rheostat.control import ControlFormat
from rheostat.logprobs import TokenRow, sum_logprobs
from rheostat.method_name import MethodName
from rheostat.models import Policy, identity, load_policy
from rheostat.plugins import (
    ControlledCompletion,
    ControlledRequest,
    Engine,
    Judged,
    Method,
    MethodContext,
    Sampling,
)
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import EvaluationRow, Message, Prompt
from rheostat.rundir import RunDirectory, Stage
from rheostat.scoring import OWN, CalibratedScorer

EVALUATIONS = ("optimization", "generalization")
REACHABLE = "reachable"
Work = Callable[[Sequence[Prompt], int], list[EvaluationRow]]


def scorers_of(evaluation: str, config: RunConfig) -> tuple[str, ...]:
    """Who scores an evaluation, the leading scorer first: the run's own rewards, or the judges where there are any."""
    return tuple(config.judges) if evaluation == "generalization" and config.judges else (OWN,)


class Evaluator:
    """Holds what the cells of all methods share: the base model, the scorers, the grid."""

    def __init__(self, run: RunDirectory, config: RunConfig, scorers: dict[str, CalibratedScorer]) -> None:
        self._run = run
        self._config = config
        self._scorers = scorers
        self._format: ControlFormat = config.control_format
        options = config.evaluate
        self._sampling = Sampling(options.temperature, options.top_p, options.max_tokens)
        self._base: Policy | None = None
        self._prompts = run.finished("prompts")

    @property
    def base(self) -> Policy:
        """The untuned model, loaded once."""
        if self._base is None:
            self._base = load_policy(self._config.model, dtype=self._config.dtype, device=self._config.device)
        return self._base

    def evaluate(
        self,
        name: MethodName,
        evaluations: Sequence[str],
        *,
        tuned: Stage | None,
        progress: ProgressDisplay = null_progress,
    ) -> None:
        """The rows of a method in each evaluation; `tuned` is the stage that trained its model."""
        policy: Policy | None = None
        for evaluation in evaluations:
            stage = self._stage(evaluation, name, tuned)
            if stage.done:
                continue
            started = time.perf_counter()
            if policy is None:
                policy = self._tuned_policy(tuned.path / "model") if tuned is not None else self.base
            method = self._method(name, policy, is_controlled=tuned is not None)
            answered = self._map(
                stage, method, evaluation, label=f"{evaluation} {name.name}", progress=progress
            )
            rows = stage.read(EvaluationRow)
            tokens = sum(row.generated_tokens for row in rows)
            stage.finish({"responses": len(rows), "generated_tokens": tokens})
            self._run.record_timing(stage.name, time.perf_counter() - started, responses=answered)

    def reachable(self, evaluation: str, *, progress: ProgressDisplay = null_progress) -> None:
        """Base samples of every prompt, scored: what a method that only picks among them could come to."""
        samples = self._config.evaluate.reachable_samples
        stage = self._stage(evaluation, None, None)
        if stage.done:
            return
        engine = self._engine(self.base)

        def work(shard: Sequence[Prompt], seed: int) -> list[EvaluationRow]:
            requests = [plugins.GenerationRequest(prompt.messages, samples=samples) for prompt in shard]
            pools = engine.generate(requests, self._sampling, seed=seed)
            cells = [prompt for prompt in shard for _ in range(samples)]
            answers = [ControlledCompletion(each, each.tokens) for pool in pools for each in pool]
            return self._rows(cells, [{}] * len(cells), answers, evaluation, with_fluency=False)

        self._shards(stage, work, evaluation, f"{evaluation} reachable range", progress)
        stage.finish({"samples": samples})

    def _stage(self, evaluation: str, name: MethodName | None, tuned: Stage | None) -> Stage:
        options = self._config.evaluate.model_dump(
            exclude={"bootstrap", "rerank_samples", "reachable_samples"}
        )
        reranks = name is not None and (name.reranking or name.method == "reranking")
        return self._run.stage(
            f"evaluate/{evaluation}/{REACHABLE if name is None else name.name}",
            inputs={
                "prompts": self._prompts.fingerprint,
                "score": self._run.finished("score").fingerprint,
                "model": identity(self._config.model),
                "tuned": tuned.fingerprint if tuned is not None else None,
                "method": None if name is None else name.model_dump(exclude={"name"}),
                "options": options,
                "samples": self._config.evaluate.reachable_samples
                if name is None
                else self._config.evaluate.rerank_samples * reranks,
                "levels": self._format.levels,
                "dtype": self._config.dtype,
                "batch_tokens": self._config.batch_tokens,
                "seed": self._config.seed,
            },
        )

    def _tuned_policy(self, folder: Path) -> Policy:
        return load_policy(str(folder.resolve()), dtype=self._config.dtype, device=self._config.device)

    def _engine(self, policy: Policy) -> Engine:
        engine: Engine = plugins.load("engines", "transformers").build(
            policy, self._format, batch_tokens=self._config.batch_tokens
        )
        return engine

    def _method(self, name: MethodName, policy: Policy, *, is_controlled: bool) -> Method:
        context = MethodContext(
            engine=self._engine(policy),
            is_controlled=is_controlled,
            scorer=self._scorers[OWN],
            attributes=self._format.attributes,
            samples=self._config.evaluate.rerank_samples,
        )
        method: Method = plugins.load("methods", "reranking" if name.reranking else name.method).build(
            context
        )
        return method

    def _map(
        self, stage: Stage, method: Method, evaluation: str, *, label: str, progress: ProgressDisplay
    ) -> int:
        """Answers what no shard on disk holds yet; how many responses that were."""
        grid = self._format.grid()
        answered = 0

        def work(shard: Sequence[Prompt], seed: int) -> list[EvaluationRow]:
            cells = [prompt for prompt in shard for _ in grid]
            controls = [control for _ in shard for control in grid]
            requests = [
                ControlledRequest(prompt.messages, control)
                for prompt, control in zip(cells, controls, strict=True)
            ]
            answers = method.respond(requests, self._sampling, seed=seed)
            nonlocal answered
            answered += len(answers)
            return self._rows(cells, controls, answers, evaluation, with_fluency=True)

        self._shards(stage, work, evaluation, label, progress)
        return answered

    def _shards(
        self, stage: Stage, work: Work, evaluation: str, label: str, progress: ProgressDisplay
    ) -> None:
        stage.map(
            self._prompts.read(Prompt, prefix=evaluation),
            work,
            key=lambda prompt: prompt.id,
            row_type=EvaluationRow,
            shard_size=self._config.evaluate.shard_prompts,
            seed=self._config.seed,
            label=label,
            unit="prompts",
            progress=progress,
        )

    def _rows(
        self,
        prompts: Sequence[Prompt],
        controls: Sequence[dict[str, float]],
        answers: Sequence[ControlledCompletion],
        evaluation: str,
        *,
        with_fluency: bool,
    ) -> list[EvaluationRow]:
        texts = [answer.completion.text for answer in answers]
        judged = [Judged(prompt.messages, text) for prompt, text in zip(prompts, texts, strict=True)]
        scores: list[dict[str, float]] = [{} for _ in judged]
        for scorer in scorers_of(evaluation, self._config):
            for row, found in zip(scores, self._scorers[scorer].score(judged), strict=True):
                row.update({f"{scorer}/{attribute}": value for attribute, value in found.items()})
        logprobs = [0.0] * len(judged)
        if with_fluency:
            logprobs = self._base_logprobs([prompt.messages for prompt in prompts], answers)
        return [
            EvaluationRow(
                prompt_id=prompt.id,
                requested=dict(control),
                text=answer.completion.text,
                tokens=answer.completion.tokens,
                finish=answer.completion.finish,
                generated_tokens=answer.generated_tokens,
                logprob=logprob,
                scores=row,
            )
            for prompt, control, answer, logprob, row in zip(
                prompts, controls, answers, logprobs, scores, strict=True
            )
        ]

    def _base_logprobs(
        self, conversations: Sequence[tuple[Message, ...]], answers: Sequence[ControlledCompletion]
    ) -> list[float]:
        base = self.base
        prompts: dict[tuple[Message, ...], list[int]] = {}
        rows = []
        for messages, answer in zip(conversations, answers, strict=True):
            if messages not in prompts:
                prompts[messages] = encode_prompt(
                    base.tokenizer, messages, neutralise=self._format.neutralise
                )
            response = encode_response(base.tokenizer, answer.completion.text, end_id=base.end_ids[0])
            if answer.completion.finish == "length":
                response = response[:-1] or response
            prompt = prompts[messages]
            rows.append(TokenRow(prompt, response[: max(1, base.context - len(prompt))]))
        assert base.tokenizer.pad_token_id is not None
        return sum_logprobs(
            base.model, rows, pad_id=base.tokenizer.pad_token_id, batch_tokens=self._config.batch_tokens
        )
