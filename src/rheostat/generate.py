"""Generate: the model answers its own prompts, N samples each. Prompts in, responses out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rheostat.config import RunConfig
from rheostat.execution import open_executor
from rheostat.generation import engine_identity, load_engine
from rheostat.model_files import identity
from rheostat.models import recipe_policy
from rheostat.plugins import GenerationRequest, Sampling
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import Prompt, Response
from rheostat.rundir import RunDirectory, Stage
from rheostat.shard_work import Compute


def generate(run: RunDirectory, config: RunConfig, *, progress: ProgressDisplay = null_progress) -> Stage:
    """Sample `config.generate.samples` responses to every training prompt, shard by shard."""
    options = config.generate
    prompts = run.finished("prompts")
    stage = run.stage(
        "generate",
        inputs={
            "prompts": prompts.fingerprint,
            "model": identity(config.model),
            "generate": options.model_dump(),
            "dtype": config.dtype,
            **config.loading,
            "batch_tokens": config.batch_tokens,
            "seed": config.seed,
            **engine_identity(config),
        },
    )
    if stage.done:
        return stage
    started = time.perf_counter()
    with open_executor(config) as executor:
        stage.map(
            prompts.read(Prompt, prefix="train"),
            GenerateWork(config),
            key=lambda prompt: prompt.id,
            row_type=Response,
            shard_size=options.shard_prompts,
            seed=config.seed,
            label="generate",
            unit="prompts",
            progress=progress,
            executor=executor,
        )
    summary = {"responses": 0, "tokens": 0, "empty": 0, "truncated": 0}
    for response in stage.rows(Response):
        summary["responses"] += 1
        summary["tokens"] += response.tokens
        summary["empty"] += not response.text.strip()
        summary["truncated"] += response.finish == "length"
    stage.finish(summary)
    seconds = time.perf_counter() - started
    run.record_timing("generate", seconds, tokens=summary["tokens"], responses=summary["responses"])
    return stage


@dataclass(frozen=True, slots=True)
class GenerateWork:
    """Prompts in, their sampled responses out."""

    config: RunConfig

    def open(self) -> Compute[Prompt]:
        """Loads the model, or what asks the server that serves it."""
        config, options = self.config, self.config.generate
        engine = load_engine(config, lambda: recipe_policy(config))
        sampling = Sampling(options.temperature, options.top_p, options.max_tokens)

        def work(shard: Sequence[Prompt], seed: int) -> list[Response]:
            requests = [GenerationRequest(prompt.messages, samples=options.samples) for prompt in shard]
            answers = engine.generate(requests, sampling, seed=seed)
            return [
                Response(prompt.id, sample, completion.text, completion.tokens, completion.finish)
                for prompt, completions in zip(shard, answers, strict=True)
                for sample, completion in enumerate(completions)
            ]

        return work
