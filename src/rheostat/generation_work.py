"""The work of generating a pool, as an executor sees it: prompts in, sampled responses out.

The untuned model is asked as it is; a tuned one of a further round under controls, thin cells more often.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rheostat import steering
from rheostat.config import RunConfig
from rheostat.generation import load_engine, tuned_engine
from rheostat.models import recipe_policy
from rheostat.plugins import Completion, Executor, GenerationRequest, Sampling
from rheostat.progress import ProgressDisplay
from rheostat.records import Prompt, Response
from rheostat.rundir import RunDirectory, Stage
from rheostat.shard_work import Compute, ShardWork
from rheostat.steering import Cell


@dataclass(frozen=True, slots=True)
class GenerateWork:
    """Prompts in, their sampled responses out."""

    config: RunConfig

    def open(self) -> Compute[Prompt]:
        """Loads the model, or what asks the server that serves it."""
        config, options = self.config, self.config.generate
        engine = load_engine(config, lambda: recipe_policy(config))
        sampling = _sampling(config)

        def work(shard: Sequence[Prompt], seed: int) -> list[Response]:
            requests = [GenerationRequest(prompt.messages, samples=options.samples) for prompt in shard]
            answers = engine.generate(requests, sampling, seed=seed)
            return [
                row
                for prompt, completions in zip(shard, answers, strict=True)
                for row in _responses(prompt, completions)
            ]

        return work


@dataclass(frozen=True, slots=True)
class SteeredWork:
    """Prompts in; out come `rounds.samples` responses of the tuned model in `folder` to each, under steered controls.

    `shares` say how often each cell is asked for, the cells in the order of the grid; a prompt's responses are in the
    order of their cells, and numbered from `first_sample` on. `seed` is the round's own.
    """

    config: RunConfig
    folder: str
    shares: tuple[tuple[Cell, float], ...]
    first_sample: int
    seed: int

    def open(self) -> Compute[Prompt]:
        """Loads the tuned model."""
        config = self.config
        engine = tuned_engine(config, recipe_policy(config, self.folder))
        sampling = _sampling(config)
        names = config.control_format.names

        def work(shard: Sequence[Prompt], seed: int) -> list[Response]:
            requests: list[GenerationRequest] = []
            owners: list[int] = []
            for place, prompt in enumerate(shard):
                for cell, count in self.asked(prompt).items():
                    control = dict(zip(names, cell, strict=True))
                    requests.append(GenerationRequest(prompt.messages, control, count))
                    owners.append(place)
            gathered: list[list[Completion]] = [[] for _ in shard]
            for place, completions in zip(owners, engine.generate(requests, sampling, seed=seed), strict=True):
                gathered[place] += completions
            return [
                row
                for prompt, completions in zip(shard, gathered, strict=True)
                for row in _responses(prompt, completions, self.first_sample)
            ]

        return work

    def asked(self, prompt: Prompt) -> dict[Cell, int]:
        """How often each cell is asked of a prompt."""
        offset = steering.offset_of(prompt.id, seed=self.seed)
        return steering.asked(dict(self.shares), samples=self.config.rounds.samples, offset=offset)


def sample_pool(
    run: RunDirectory,
    stage: Stage,
    prompts: Sequence[Prompt],
    work: ShardWork[Prompt],
    *,
    shard_size: int,
    seed: int,
    label: str,
    executor: Executor,
    progress: ProgressDisplay,
) -> Stage:
    """Sample what no shard on disk holds yet, and close the stage with the account of all its responses."""
    started = time.perf_counter()
    made = stage.map(
        prompts,
        work,
        key=lambda prompt: prompt.id,
        row_type=Response,
        shard_size=shard_size,
        seed=seed,
        label=label,
        unit="prompts",
        progress=progress,
        executor=executor,
    )
    summary = _counts(stage.rows(Response))
    stage.finish(summary)
    counts = {key: summary[key] for key in ("tokens", "responses")}
    run.record_timing(stage.name, time.perf_counter() - started, **counts, responses_made=made)
    return stage


def _counts(rows: Iterable[Response]) -> dict[str, int]:
    """The account of a pool of responses: how many, their tokens, empty and truncated ones."""
    summary = {"responses": 0, "tokens": 0, "empty": 0, "truncated": 0}
    for response in rows:
        summary["responses"] += 1
        summary["tokens"] += response.tokens
        summary["empty"] += not response.text.strip()
        summary["truncated"] += response.finish == "length"
    return summary


def _sampling(config: RunConfig) -> Sampling:
    options = config.generate
    return Sampling(options.temperature, options.top_p, options.max_tokens)


def _responses(prompt: Prompt, completions: Sequence[Completion], first_sample: int = 0) -> list[Response]:
    return [
        Response(prompt.id, sample, completion.text, completion.tokens, completion.finish)
        for sample, completion in enumerate(completions, start=first_sample)
    ]
