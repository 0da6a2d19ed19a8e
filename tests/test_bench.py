"""The bench's recipe: one pool with the default run, and every method of it in one run, at its smallest."""

from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from rheostat import bench_page, pipeline
from rheostat.recipe import load_config
from rheostat.records import EvaluationRow
from rheostat.rundir import RunDirectory

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "pocket-bench.yaml"
SMALL = (
    "prompts.train_limit=32", "prompts.evaluation_limit=2", "prompts.calibration_limit=0",
    "prompts.generalization=null", "judges={}", "suite=null", "levels=[0,1]", "generate.samples=4",
    "generate.max_tokens=32",
    "distil.minimum_contrast=0", "distil.keep_truncated=true", "distil.pairs.minimum_gap=0.01",
    "train.steps=2", "train.batch_size=4", "evaluate.max_tokens=16", "evaluate.rerank_samples=2",
    "evaluate.reachable_samples=2", "evaluate.bootstrap=100", "evaluate.temperature=0",
)  # fmt: skip


def test_the_bench_has_the_pool_and_the_evaluation_of_the_default_run() -> None:
    bench, default = load_config(str(RECIPE), []), load_config("pocket", [])
    for block in ("model", "prompts", "rewards", "levels", "generate", "seed", "dtype", "batch_tokens", "suite"):
        assert getattr(bench, block) == getattr(default, block), block
    assert bench.evaluate.model_copy(update={"forged_prompts": default.evaluate.forged_prompts}) == default.evaluate
    assert bench.evaluate.forged_prompts == 0 and set(bench.judges) == {"truth"}
    for objective in ("clm", "exmate"):
        own, usual = bench.train.of(objective), default.train.of(objective)
        of_others: dict[str, dict[str, object]] = {"overrides": {}, "objectives": {}}
        assert objective not in bench.train.objectives
        assert own.model_copy(update=of_others) == usual.model_copy(update=of_others)


def test_the_bench_has_every_neighbour() -> None:
    """By name, so that a newcomer's method file breaks nothing: CONTRIBUTING's."""
    heads = {name.partition("+")[0] for name in load_config(str(RECIPE), []).methods}
    assert heads >= {
        "base", "prompting", "reranking", "clm", "exmate", "rlhf", "dpo", "bfpo", "adpo", "midpo", "midpo_gates",
        "safepatching", "safepatching_dials", "soups", "task_arithmetic", "logit_mixing",
    }  # fmt: skip


@pytest.mark.timeout(900)
def test_every_method_of_the_bench_answers_in_one_run(tmp_path: Path) -> None:
    """Greedily: one without a dial gives a prompt the same answer whatever is asked. The page is made of them all."""
    overrides = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["train"]["overrides"]
    short = [f"train.overrides.{objective}.steps=2" for objective in overrides]
    config = load_config(str(RECIPE), [*SMALL, *short])
    run, page = tmp_path / "run", tmp_path / "bench.md"
    pipeline.run(config, run)
    with RunDirectory.open(run, read_only=True) as directory:
        for name in config.method_names:
            rows = directory.finished(f"evaluate/optimization/{name.name}").read(EvaluationRow)
            answers = defaultdict(set)
            for row in rows:
                answers[row.prompt_id].add(row.text)
            assert len(rows) == 2 * 4, name.name
            assert name.has_dial or all(len(texts) == 1 for texts in answers.values()), name.name
    bench_page.write(run, page)
    text = page.read_text(encoding="utf-8")
    assert all(f"\n| `{name}` | " in text for name in config.methods)
