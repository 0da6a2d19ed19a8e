"""Generate: the model answers its own prompts, N samples each. Prompts in, responses out."""

import time
from collections.abc import Sequence

from rheostat import plugins
from rheostat.config import RunConfig
from rheostat.models import identity, load_policy
from rheostat.plugins import GenerationRequest, Sampling
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
            "batch_tokens": config.batch_tokens,
            "seed": config.seed,
        },
    )
    if stage.done:
        return stage
    started = time.perf_counter()
    policy = load_policy(config.model, dtype=config.dtype, device=config.device)
    engine = plugins.load("engines", "transformers").build(
        policy, config.control_format, batch_tokens=config.batch_tokens
    )
    sampling = Sampling(options.temperature, options.top_p, options.max_tokens)

    def work(shard: Sequence[Prompt], seed: int) -> list[Response]:
        requests = [GenerationRequest(prompt.messages, samples=options.samples) for prompt in shard]
        answers = engine.generate(requests, sampling, seed=seed)
        return [
            Response(prompt.id, sample, completion.text, completion.tokens, completion.finish)
            for prompt, completions in zip(shard, answers, strict=True)
            for sample, completion in enumerate(completions)
        ]

    stage.map(
        prompts.read(Prompt, prefix="train"),
        work,
        key=lambda prompt: prompt.id,
        row_type=Response,
        shard_size=options.shard_prompts,
        seed=config.seed,
        label="generate",
        unit="prompts",
        progress=progress,
    )
    responses = stage.read(Response)
    tokens = sum(response.tokens for response in responses)
    empty = sum(not response.text.strip() for response in responses)
    truncated = sum(response.finish == "length" for response in responses)
    stage.finish({"responses": len(responses), "tokens": tokens, "empty": empty, "truncated": truncated})
    run.record_timing("generate", time.perf_counter() - started, tokens=tokens, responses=len(responses))
    return stage
