"""Generate: the model answers its own prompts, N samples each. Prompts in, responses out."""

import time

from rheostat.config import RunConfig
from rheostat.execution import open_executor
from rheostat.generation import engine_identity
from rheostat.generation_work import GenerateWork, pool_counts
from rheostat.model_files import identity
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import Prompt, Response
from rheostat.rundir import RunDirectory, Stage


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
        made = stage.map(
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
    summary = pool_counts(stage.rows(Response))
    stage.finish(summary)
    seconds = time.perf_counter() - started
    counts = {key: summary[key] for key in ("tokens", "responses")}
    run.record_timing("generate", seconds, **counts, responses_made=made)
    return stage
