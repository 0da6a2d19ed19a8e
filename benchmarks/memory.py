"""How much memory a run takes as its data grow: the peak of each stage, in a process of its own.

Synthetic responses (and evaluation rows) go through score, distil and the figures of evaluate. The rewards are stubs
that hash a response: what is measured is what the stages hold, not what a model does.

    python benchmarks/memory.py --responses 25000 100000
"""

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rheostat import score as score_stage
from rheostat.config import RewardConfig, RunConfig
from rheostat.distil import distil
from rheostat.figures import figures
from rheostat.method_name import TrainingData
from rheostat.plugins import Judged, Progress, Reward
from rheostat.recipe import load_config
from rheostat.records import EvaluationRow, Message, Prompt, Response
from rheostat.rundir import RunDirectory

RESULT = Path(__file__).parent / "results" / "memory.json"
SAMPLES, WORDS, SHARD, LIMIT_MIB = 8, 60, 512, 2048
CONFIG = [
    "methods=[base, prompting]", "judges={}", "suite=null", "evaluate.bootstrap=200", f"generate.samples={SAMPLES}",
]  # fmt: skip
STAGES = ("score", "distil", "evaluate")


class Stub:
    """A number of a response that costs nothing."""

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        return [
            int(hashlib.md5(f"{self._attribute}{item.response}".encode()).hexdigest()[:8], 16) / 2**32
            for item in items
        ]


def stubs(specs: Mapping[str, RewardConfig], config: RunConfig) -> dict[str, Reward]:
    return {attribute: Stub(attribute) for attribute in specs}


def text(generator: random.Random) -> str:
    return " ".join(f"word{generator.randrange(4000)}" for _ in range(WORDS))


def build(path: Path, responses: int, config: RunConfig) -> None:
    """Prompts, responses and evaluation rows as their stages leave them; every row is made when it is written."""
    generator = random.Random(0)
    grid = config.control_format.grid()
    train, held_out = responses // SAMPLES, responses // 2 // len(grid)
    with RunDirectory.open(path, create=True) as run:
        prompts = run.stage("prompts", inputs={})
        for split, count in (("train", train), ("optimization", held_out)):
            prompts.write(
                (
                    Prompt(f"{split}-{index:07d}", (Message("user", text(generator)),), split, "synthetic")
                    for index in range(count)
                ),
                Prompt,
                prefix=split,
            )
        prompts.finish({})
        generated = run.stage("generate", inputs={})
        generated.map(
            range(train),
            lambda shard, _: [
                Response(f"train-{index:07d}", sample, text(generator), WORDS, "stop")
                for index in shard
                for sample in range(SAMPLES)
            ],
            key=str,
            row_type=Response,
            shard_size=SHARD // SAMPLES,
            seed=0,
        )
        generated.finish({})
        for method in ("reachable", *config.methods):
            stage = run.stage(f"evaluate/optimization/{method}", inputs={})
            cells = [{}] * config.evaluate.reachable_samples if method == "reachable" else grid
            stage.write(
                (
                    EvaluationRow(
                        f"optimization-{index:07d}", dict(cell), text(generator), WORDS, "stop", WORDS, -90.0,
                        {f"reward/{name}": generator.random() for name in config.control_format.names},
                    )  # fmt: skip
                    for index in range(held_out)
                    for cell in cells
                ),
                EvaluationRow,
            )
            stage.finish({})


def work(stage: str, path: Path) -> None:
    """A stage in this process; prints its peak in MiB and its seconds."""
    config = load_config("pocket", CONFIG)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    score_stage.load_rewards = stubs
    with RunDirectory.open(path) as run:
        if stage == "score":
            score_stage.score(run, config)
        elif stage == "distil":
            distil(run, config, TrainingData(variant="moec"))
        else:
            figures(run, config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.perf_counter() - started
    print(json.dumps({"imports_mib": before, "peak_mib": peak, "seconds": seconds}))


def measure(responses: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        build(path, responses, load_config("pocket", CONFIG))
        found = {}
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, "--run", str(path)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[stage] = json.loads(output.splitlines()[-1])
            print(f"{responses:>8,} responses, {stage:<9} {found[stage]['peak_mib']:6.0f} MiB at its peak, "
                  f"{found[stage]['imports_mib']:.0f} of them imports, {found[stage]['seconds']:.0f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, nargs="+", default=[25_000, 100_000])
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        work(arguments.stage, arguments.run)
        return
    found = {str(count): measure(count) for count in arguments.responses}
    RESULT.write_text(json.dumps({"limit_mib": LIMIT_MIB, "stages": found}, indent=2) + "\n", encoding="utf-8")
    highest = max(stage["peak_mib"] for stages in found.values() for stage in stages.values())
    print(f"highest: {highest:.0f} MiB of {LIMIT_MIB} allowed")
    sys.exit(highest > LIMIT_MIB)


if __name__ == "__main__":
    main()
