"""Generate: the model answers its own prompts, N samples each. Prompts in, responses out."""

from rheostat.config import RunConfig
from rheostat.execution import open_executor
from rheostat.generation import engine_identity
from rheostat.generation_work import GenerateWork, sample_pool
from rheostat.model_files import identity
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import Prompt
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
    with open_executor(config) as executor:
        return sample_pool(
            run,
            stage,
            prompts.read(Prompt, prefix="train"),
            GenerateWork(config),
            shard_size=options.shard_prompts,
            seed=config.seed,
            label="generate",
            executor=executor,
            progress=progress,
        )
