"""What a dial costs to turn: every mechanism beside every other, in one process, repetitions alternating.

    python benchmarks/dials.py --json benchmarks/results/dials.json
    python benchmarks/dials.py --run RUN

Control text (`clm`, any tuned model), words in the prompt, reranking, merged weights, mixed logits, gates: all methods
on disk that have a dial, and `base`, which has none. The models are those of RUN, or of a run of its own whose
trainings end after two steps: what a mechanism costs does not depend on what its weights hold. No token ends a
response, so that all give `--max-tokens` tokens. Three loads: requests one at a time, each with a setting of its own; a
batch with one setting; a batch with a setting each.

Figures: milliseconds a returned token, medians, and their ratio to the control text's, the median over repetitions;
weights held beside one model's; bytes that a returned token takes in the caches, rejected candidates' included.
"""

import argparse
import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import machine
from rheostat import pipeline, plugins, workbench
from rheostat.config import RunConfig
from rheostat.engines._slots import SlotCache
from rheostat.method_models import MethodModels
from rheostat.method_name import MethodName
from rheostat.model_files import quiet
from rheostat.models import Policy, recipe_policy
from rheostat.plugins import ControlledCompletion, ControlledRequest, Method, Sampling
from rheostat.recipe import load_config
from rheostat.records import Prompt
from rheostat.rundir import RunDirectory
from rheostat.score import load_calibrators
from rheostat.scoring import OWN, CalibratedScorer
from rheostat.workbench import Workbench

CONTROL_TEXT = "clm"
MIB = 2**20
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
LOADS = ("one at a time", "batch, one setting", "batch, a setting each")


def dialled_methods() -> list[str]:
    """Names as a recipe has them: base, control text, and every other method with a dial."""
    names = [name for name in plugins.available("methods") if name not in ("base", "tuned")]
    return ["base", CONTROL_TEXT, *(name for name in names if plugins.load("methods", name).HAS_DIAL)]


def own_run(arguments: argparse.Namespace, out: Path) -> None:
    """A run whose trainings end after two steps, without its evaluation."""
    names = ", ".join(arguments.methods)
    settings = [
        f"model={arguments.model}", f"methods=[{names}]", "train.steps=2", "train.batch_size=4",
        "distil.minimum_contrast=0", f"prompts.train_limit={arguments.train_prompts}", "judges={}", "suite=null",
        f"prompts.evaluation_limit={arguments.batch_size}", "prompts.generalization=null",
        "generate.samples=8", "generate.max_tokens=24", f"evaluate.rerank_samples={arguments.samples}",
    ]  # fmt: skip
    pipeline.start(load_config("pocket", settings), out)
    pipeline.stage("score", out)
    pipeline.stage("distil", out)
    pipeline.stage("train", out)


def endless(config: RunConfig, model: str | None = None) -> Policy:
    """The policy, of which no token ends a response."""
    return replace(recipe_policy(config, model), end_ids=(-1,))


@dataclass
class Noted:
    """Bytes of a token in the caches made, and how many responses were scored."""

    bytes_a_slot: float = 0.0
    scored: int = 0


@contextmanager
def noting() -> Iterator[Noted]:
    """Within, caches and scorers say what they take."""
    noted = Noted()
    reserve, score = SlotCache.reserve, CalibratedScorer.score

    def noting_reserve(cache: SlotCache, like: Any, rows: int, columns: int, used: int) -> None:
        reserve(cache, like, rows, columns, used)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        noted.bytes_a_slot = max(noted.bytes_a_slot, held / (rows * columns))

    def noting_score(scorer: CalibratedScorer, items: Any, **further: Any) -> Any:
        noted.scored += len(items)
        return score(scorer, items, **further)

    with (
        mock.patch.object(SlotCache, "reserve", noting_reserve),
        mock.patch.object(CalibratedScorer, "score", noting_score),
    ):
        yield noted


def held_bytes() -> int:
    """Bytes of all tensors alive, shared memory once."""
    gc.collect()
    storages = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and each.device.type != "meta":
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@dataclass(frozen=True)
class Mechanism:
    """A method that is ready to answer, and what it holds."""

    method: Method
    extra_weights: int
    cache_bytes_a_token: float
    generated_a_token: float


def ready(
    name: MethodName, run: RunDirectory, config: RunConfig, requests: Sequence[ControlledRequest], sampling: Sampling
) -> Mechanism:
    """The method on a bench of its own, warm. Of what the bench holds, what served the requests is counted."""
    nothing = held_bytes()
    bench = Workbench(config, load_calibrators(run, config))
    bench.scorer(OWN)
    rewards = held_bytes() - nothing
    base = bench.base.model
    model = held_bytes() - nothing - rewards
    method = bench.method(name, MethodModels.of(run, config, name).folders)
    forwards: list[object] = []
    hook = base.register_forward_pre_hook(lambda *_: forwards.append(None))
    with noting() as noted:
        answers = method.respond(requests, sampling, seed=0)
    hook.remove()
    idle = (0 if noted.scored else rewards) + (0 if forwards else model)
    generated = sum(answer.generated_tokens for answer in answers) / count(answers, sampling)
    extra = held_bytes() - nothing - idle - model
    return Mechanism(method, extra, noted.bytes_a_slot * generated, generated)


def count(answers: Sequence[ControlledCompletion], sampling: Sampling) -> int:
    """Returned tokens, of which every answer has the most that it may."""
    tokens = [answer.completion.tokens for answer in answers]
    assert set(tokens) == {sampling.max_tokens}, f"got responses of {min(tokens)} to {max(tokens)} tokens"
    return sum(tokens)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians a load, ratios to the control text's, weights and cache bytes of each method."""
    with RunDirectory.open(folder, read_only=True) as run:
        config = load_config(run.config_path)
        prompts = run.finished("prompts").read(Prompt, prefix="optimization")[: arguments.batch_size]
        assert len(prompts) == arguments.batch_size, f"got {len(prompts)} prompts for a batch of {arguments.batch_size}"
        sampling = Sampling(config.evaluate.temperature, config.evaluate.top_p, arguments.max_tokens)
        grid = config.control_format.grid()
        unlike = [
            ControlledRequest(prompt.messages, grid[(7 * place) % len(grid)]) for place, prompt in enumerate(prompts)
        ]
        alike = [ControlledRequest(prompt.messages, grid[len(grid) // 2]) for prompt in prompts]
        names = [MethodName.parse(each) for each in arguments.methods]
        mechanisms = {each.name: ready(each, run, config, unlike[:2], sampling) for each in names}
        seconds: dict[str, dict[str, list[float]]] = {load: {name: [] for name in mechanisms} for load in LOADS}

        def answer(method: Method, load: str, seed: int) -> None:
            if load == LOADS[0]:
                for request in unlike[: arguments.single_requests]:
                    method.respond([request], sampling, seed=seed)
            else:
                method.respond(alike if load == LOADS[1] else unlike, sampling, seed=seed)

        clock = CLOCKS[arguments.clock]
        for seed in range(arguments.repetitions):
            for load in LOADS:
                requests = min(arguments.single_requests, len(unlike)) if load == LOADS[0] else len(unlike)
                for name, each in mechanisms.items():
                    started = clock()
                    answer(each.method, load, seed)
                    seconds[load][name].append((clock() - started) / (requests * sampling.max_tokens))
    return {
        "model": config.model,
        "batch_size": arguments.batch_size,
        "single_requests": min(arguments.single_requests, len(unlike)),
        "max_tokens": arguments.max_tokens,
        "rerank_samples": config.evaluate.rerank_samples,
        "batch_tokens": config.batch_tokens,
        "settings_in_the_batch": len({tuple(each.control.values()) for each in unlike}),
        "repetitions": arguments.repetitions,
        "clock": arguments.clock,
        "methods": {
            name: {
                "milliseconds_a_token": {load: 1000 * statistics.median(seconds[load][name]) for load in LOADS},
                "ratio_to_control_text": {
                    load: statistics.median(
                        mine / text
                        for mine, text in zip(seconds[load][name], seconds[load][CONTROL_TEXT], strict=True)
                    )
                    for load in LOADS
                },
                "extra_weights_mib": each.extra_weights / MIB,
                "cache_bytes_a_token": each.cache_bytes_a_token,
                "generated_a_token": each.generated_a_token,
            }
            for name, each in mechanisms.items()
        },
        "machine": machine.describe(),
    }


def main() -> None:
    """Measures, prints a table, and writes JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a run that has trained; else one is made, of two steps a training")
    parser.add_argument("--methods", nargs="+", default=dialled_methods(), help=f"must hold {CONTROL_TEXT}")
    parser.add_argument("--model", default="pocket:chat")
    parser.add_argument("--train-prompts", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--single-requests", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--samples", type=int, default=16, help="of reranking, where no run is given")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: this process' own seconds, on a busy CPU"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with quiet(), tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "run"
        if arguments.run is None:
            own_run(arguments, made)
        with mock.patch.object(workbench, "recipe_policy", endless):
            figures = measure(arguments, arguments.run or made)
    print(f"{figures['clock']} milliseconds a token (ratio to {CONTROL_TEXT}); batches of {figures['batch_size']}")
    print(f"{'':20}" + "".join(f"{load:>24}" for load in LOADS) + f"{'extra MiB':>11}{'cache B/token':>15}")
    for name, found in figures["methods"].items():
        times, ratios = found["milliseconds_a_token"], found["ratio_to_control_text"]
        cells = "".join(f"{times[load]:16.3f} {ratios[load]:6.2f}x" for load in LOADS)
        print(f"{name:20}{cells}{found['extra_weights_mib']:11.1f}{found['cache_bytes_a_token']:15.0f}")
    machine.write(arguments.json, figures)


if __name__ == "__main__":
    main()
