"""What answers and scores the cells of an evaluation: models, engines and scorers, loaded where they are used.

A `Workbench` travels without its models: what is pickled is the recipe and the calibrators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rheostat import plugins
from rheostat.calibration import Calibrator
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import RunConfig
from rheostat.control import ControlFormat
from rheostat.generation import load_engine, tuned_engine
from rheostat.logprobs import TokenRow, sum_logprobs
from rheostat.method_models import ModelFolders
from rheostat.method_name import MethodName
from rheostat.models import Policy, recipe_policy
from rheostat.plugins import (
    ControlledCompletion,
    ControlledRequest,
    Engine,
    Judged,
    Method,
    MethodContext,
    Sampling,
)
from rheostat.recipe import method_options
from rheostat.records import Control, EvaluationRow, Message, Prompt
from rheostat.scoring import OWN, CalibratedScorer, calibrated_scorer
from rheostat.shard_work import Compute


class Workbench:
    """Holds what the cells of all methods share: the base model, the scorers, the tuned model of the moment."""

    def __init__(self, config: RunConfig, calibrators: Mapping[str, Mapping[str, Calibrator]]) -> None:
        self.config = config
        self.format: ControlFormat = config.control_format
        options = config.evaluate
        self.sampling = Sampling(options.temperature, options.top_p, options.max_tokens)
        self._calibrators = calibrators
        self._scorers: dict[str, CalibratedScorer] = {}
        self._base: Policy | None = None
        self._tuned: Policy | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Workbench, (self.config, self._calibrators)

    @property
    def base(self) -> Policy:
        """The untuned model, loaded once."""
        if self._base is None:
            self._base = self._load(self.config.model)
        return self._base

    def scorer(self, party: str) -> CalibratedScorer:
        """A party's rewards with its calibrators, loaded once."""
        if party not in self._scorers:
            self._scorers[party] = calibrated_scorer(self.config, party, self._calibrators[party])
        return self._scorers[party]

    def tuned(self, folder: str) -> Policy:
        """The tuned model in a folder; the one before it is let go."""
        if self._tuned is None or self._tuned.name != folder:
            self._tuned = None
            self._tuned = self._load(folder)
        return self._tuned

    def engine(self, tuned: str | None) -> Engine:
        """What generates with the tuned model in the folder `tuned`, or with the base model."""
        if tuned is None:
            return load_engine(self.config, lambda: self.base)
        return tuned_engine(self.config, self.tuned(tuned))

    def method(self, name: MethodName, folders: ModelFolders) -> Method:
        """A method over its tuned model, or over the base model and the models that it is made of."""
        is_controlled = name.objective is not None and plugins.needs(name.objective).control
        file = name.method
        if name.reranking:
            file = "reranking"
        elif name.objective is not None and not is_controlled:
            file = "base"
        context = MethodContext(
            engine=self.engine(folders.tuned),
            is_controlled=is_controlled,
            scorer=self.scorer(OWN),
            attributes=self.format.attributes,
            samples=self.config.evaluate.rerank_samples,
            models=_BenchModels(self, folders.parts),
            options=method_options(self.config, file),
        )
        method: Method = plugins.load("methods", file).build(context)
        return method

    def rows(
        self,
        prompts: Sequence[Prompt],
        controls: Sequence[Control],
        answers: Sequence[ControlledCompletion],
        scorers: Sequence[str],
        *,
        with_fluency: bool,
    ) -> list[EvaluationRow]:
        """The cells, scored by each of the parties `scorers`; without fluency their `logprob` is 0."""
        texts = [answer.completion.text for answer in answers]
        judged = [Judged(prompt.messages, text) for prompt, text in zip(prompts, texts, strict=True)]
        scores: list[dict[str, float]] = [{} for _ in judged]
        for scorer in scorers:
            for row, found in zip(scores, self.scorer(scorer).score(judged), strict=True):
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

    def _load(self, model: str) -> Policy:
        return recipe_policy(self.config, model)

    def _base_logprobs(
        self, conversations: Sequence[tuple[Message, ...]], answers: Sequence[ControlledCompletion]
    ) -> list[float]:
        base = self.base
        prompts: dict[tuple[Message, ...], list[int]] = {}
        rows = []
        for messages, answer in zip(conversations, answers, strict=True):
            if messages not in prompts:
                prompts[messages] = encode_prompt(
                    base.tokenizer, messages, neutralise=self.format.neutralise
                )
            response = encode_response(base.tokenizer, answer.completion.text, end_id=base.end_ids[0])
            if answer.completion.finish == "length":
                response = response[:-1] or response
            prompt = prompts[messages]
            rows.append(TokenRow(prompt, response[: max(1, base.context - len(prompt))]))
        assert base.tokenizer.pad_token_id is not None
        return sum_logprobs(
            base.model, rows, pad_id=base.tokenizer.pad_token_id, batch_tokens=self.config.batch_tokens
        )


@dataclass(frozen=True, slots=True)
class _BenchModels:
    """The models that a method is made of: `plugins.Models`."""

    bench: Workbench
    parts: Mapping[str, str]

    def base(self) -> Policy:
        return self.bench.base

    def tuned(self, role: str) -> Policy:
        return recipe_policy(self.bench.config, str(self.folder(role) / "model"))

    def folder(self, role: str) -> Path:
        return Path(self.parts[role])

    def engine(self, policy: Policy) -> Engine:
        return tuned_engine(self.bench.config, policy)


@dataclass(frozen=True, slots=True)
class GridWork:
    """Prompts in; out come the cells of the grid as a method answers them, scored by `scorers`.

    `folders` say where the method's models lie.
    """

    bench: Workbench
    method: MethodName
    folders: ModelFolders
    scorers: tuple[str, ...]
    with_fluency: bool = True

    def open(self) -> Compute[Prompt]:
        """Loads the method's models."""
        bench = self.bench
        method = bench.method(self.method, self.folders)
        grid = bench.format.grid()

        def work(shard: Sequence[Prompt], seed: int) -> list[EvaluationRow]:
            cells = [prompt for prompt in shard for _ in grid]
            controls = [control for _ in shard for control in grid]
            requests = [
                ControlledRequest(prompt.messages, control)
                for prompt, control in zip(cells, controls, strict=True)
            ]
            answers = method.respond(requests, bench.sampling, seed=seed)
            return bench.rows(cells, controls, answers, self.scorers, with_fluency=self.with_fluency)

        return work


@dataclass(frozen=True, slots=True)
class ReachableWork:
    """Prompts in; out come `samples` responses of the base model to each, scored by `scorers`."""

    bench: Workbench
    samples: int
    scorers: tuple[str, ...]

    def open(self) -> Compute[Prompt]:
        """Loads the base model."""
        bench, samples = self.bench, self.samples
        engine = bench.engine(None)

        def work(shard: Sequence[Prompt], seed: int) -> list[EvaluationRow]:
            requests = [plugins.GenerationRequest(prompt.messages, samples=samples) for prompt in shard]
            pools = engine.generate(requests, bench.sampling, seed=seed)
            cells = [prompt for prompt in shard for _ in range(samples)]
            answers = [ControlledCompletion(each, each.tokens) for pool in pools for each in pool]
            return bench.rows(cells, [{}] * len(cells), answers, self.scorers, with_fluency=False)

        return work
