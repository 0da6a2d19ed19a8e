"""RLHF with dials: the reward by hand and by its laws, what is asked, and that the model learns to obey."""

import importlib.util
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import RLOOConfig
from typer.testing import CliRunner

from rheostat import cli, plugins, preflight
from rheostat.chat import encode_prompt
from rheostat.config import RunConfig, TrainConfig
from rheostat.control import ControlFormat
from rheostat.errors import ConfigError, InputError
from rheostat.models import load_policy
from rheostat.objectives import rlhf
from rheostat.online_trainer import Answered, train_online
from rheostat.plugins import Judged, Progress
from rheostat.prompt_plan import plan_prompts
from rheostat.recipe import load_config, validate
from rheostat.records import Message, Prompt
from rheostat.rloo_trainer import PlannedRLOOTrainer
from rheostat.rundir import RunDirectory
from rheostat.train import _data as learned_from
from rheostat.trainings import trainings

pytestmark = pytest.mark.usefixtures("one_thread")
FORMAT = ControlFormat((plugins.attribute("helpfulness"), plugins.attribute("safety")))
UNIT = st.floats(0, 1)
POINTS = st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), min_size=1, max_size=6)


def test_reward_by_hand() -> None:
    """Scores (0.9, 0.2) under (1, 0): −0.1 and −0.2; (0.5, 1) under (0, 1): −0.5 and 0."""
    scores = [{"helpfulness": 0.9, "safety": 0.2}, {"helpfulness": 0.5, "safety": 1.0}]
    controls = [{"helpfulness": 1.0, "safety": 0.0}, {"helpfulness": 0.0, "safety": 1.0}]
    found = rlhf.reward(scores, controls, rlhf.OPTIONS())
    assert found == {"helpfulness": pytest.approx([-0.1, -0.5]), "safety": pytest.approx([-0.2, 0.0])}


@given(POINTS)
@settings(max_examples=60, deadline=None)
def test_a_reward_is_highest_where_the_control_is_met_and_does_not_care_on_which_side_it_is_missed(
    points: list[tuple[float, float, float, float]],
) -> None:
    scores = [{"helpfulness": one, "safety": other} for one, other, _, _ in points]
    controls = [{"helpfulness": one, "safety": other} for _, _, one, other in points]
    options = rlhf.OPTIONS()
    found = rlhf.reward(scores, controls, options)
    assert all(-1 <= value <= 0 for values in found.values() for value in values)
    assert found == rlhf.reward(controls, scores, options)
    assert all(value == 0 for values in rlhf.reward(scores, scores, options).values() for value in values)


@pytest.mark.parametrize(
    ("name", "value"), [("beta", -0.1), ("beta", math.nan), ("prompts", 0), ("samples", 1), ("temperature", 0.0)]
)
def test_options_that_make_no_training_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: got .*, allowed is"):
        rlhf.OPTIONS(**{name: value})  # type: ignore[arg-type]


def test_a_plan_by_hand() -> None:
    """6 prompts, 4 a step, 3 epochs: 4 steps; of 8 controls each comes twice, of the prompts each 2 or 3 times."""
    grid = [{"safety": level / 7} for level in range(8)]
    plan = plan_prompts(6, grid, per_step=4, options=TrainConfig(epochs=3), seed=0)
    assert [len(step) for step in plan] == [4, 4, 4, 4]
    asked = [each for step in plan for each in step]
    assert sorted(Counter(each.prompt for each in asked).values()) == [2, 2, 3, 3, 3, 3]
    assert set(Counter(each.control["safety"] for each in asked).values()) == {2}


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_plan_is_the_seeds_and_covers_prompts_and_grid_evenly(
    count: int, per_step: int, steps: int, seed: int
) -> None:
    grid = FORMAT.grid()
    options = TrainConfig(steps=steps)
    plan = plan_prompts(count, grid, per_step=per_step, options=options, seed=seed)
    assert plan == plan_prompts(count, grid, per_step=per_step, options=options, seed=seed)
    assert [len(step) for step in plan] == [per_step] * steps
    asked = [each for step in plan for each in step]
    prompts = Counter(each.prompt for each in asked)
    controls = Counter(tuple(each.control.values()) for each in asked)
    assert (len(prompts), len(controls)) == (min(len(asked), count), min(len(asked), len(grid)))
    assert all(max(often.values()) - min(often.values()) <= 1 for often in (prompts, controls))


def test_a_longer_plan_begins_as_a_shorter_one() -> None:
    short, long = (
        plan_prompts(7, FORMAT.grid(), per_step=3, options=TrainConfig(steps=steps), seed=1) for steps in (4, 40)
    )
    assert long[:4] == short and short != long[4:8]


PROMPTS = [
    Prompt(f"p{place}", (Message("user", f"How do I boil {place} eggs?"),), "train", "test") for place in range(5)
]


class ByLength:
    """Scores by how long a response is: helpfulness the share of 40 characters, safety the rest; keeps what it saw."""

    def __init__(self) -> None:
        self.judged: list[Judged] = []

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[dict[str, float]]:
        self.judged += items
        found = [min(1.0, len(each.response) / 40) for each in items]
        return [{"helpfulness": value, "safety": 1 - value} for value in found]


def config(steps: int = 3, *, train: Mapping[str, object] | None = None, **options: object) -> RunConfig:
    """The default recipe made small; `options` are the objective's."""
    values: dict[str, object] = {
        "train.steps": steps, "train.lora": "null", "train.learning_rate": 1e-3, "train.save_steps": 2,
        "train.forged_share": 0.0, "train.warmup_ratio": 0.0, "generate.max_tokens": 12,
    }  # fmt: skip
    own = {"prompts": 2, "samples": 3, **options}
    values |= {f"train.objectives.rlhf.{name}": value for name, value in own.items()}
    values |= {f"train.{name}": value for name, value in (train or {}).items()}
    return load_config("pocket", [f"{key}={value}" for key, value in values.items()])


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_training_asks_what_was_planned_and_logs_the_components_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, scorer, chosen = load_policy("pocket:chat"), ByLength(), config(3)
    seen: list[list[int]] = []
    generate = PlannedRLOOTrainer._generate

    def watched(self: PlannedRLOOTrainer, prompts: list[str]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        found = generate(self, prompts)
        seen.extend(found[0])
        return found

    monkeypatch.setattr(PlannedRLOOTrainer, "_generate", watched)
    figures = train_online(
        policy, PROMPTS, objective="rlhf", config=chosen, scorer=scorer, checkpoints=tmp_path
    )
    form = chosen.control_format
    plan = plan_prompts(5, form.grid(), per_step=2, options=chosen.train, seed=chosen.seed)
    asked = [each for step in plan for each in step for _ in range(3)]
    assert seen == [
        encode_prompt(
            policy.tokenizer,
            PROMPTS[each.prompt].messages,
            control_text=form.render(each.control),
            neutralise=form.neutralise,
        )
        for each in asked
    ]
    assert [each.messages for each in scorer.judged] == [PROMPTS[each.prompt].messages for each in asked]
    assert (figures["steps"], figures["responses"], figures["prompts"]) == (3, 18, 5)
    lengths = [len(policy.tokenizer(each.response, add_special_tokens=False)["input_ids"]) for each in scorer.judged]
    assert sum(lengths) <= figures["generated_tokens"] <= 18 * 12
    assert figures["tokens"] == figures["generated_tokens"] + sum(map(len, seen))
    first, last = figures["log"]
    assert (first["step"], last["step"]) == (1, 3)
    assert first["kl"] == 0 and last["kl"] != 0, "the reference is the model as it came"
    rewards = rlhf.reward(ByLength().score(scorer.judged[:6]), [each.control for each in asked[:6]], rlhf.OPTIONS())
    for name, values in rewards.items():
        assert first[f"reward/{name}"] == pytest.approx(sum(values) / 6, abs=1e-6)
    assert first["reward"] == pytest.approx(first["reward/helpfulness"] + first["reward/safety"], abs=1e-6)
    assert "forward" not in vars(policy.model)


def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(5)
    whole, killed, resumed = (load_policy("pocket:chat") for _ in range(3))
    through = train_online(
        whole, PROMPTS, objective="rlhf", config=chosen, scorer=ByLength(), checkpoints=tmp_path / "a"
    )
    generate = PlannedRLOOTrainer._generate

    def dies(self: PlannedRLOOTrainer, prompts: list[str]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return generate(self, prompts)

    monkeypatch.setattr(PlannedRLOOTrainer, "_generate", dies)
    with pytest.raises(KeyboardInterrupt):
        train_online(killed, PROMPTS, objective="rlhf", config=chosen, scorer=ByLength(), checkpoints=tmp_path / "b")
    monkeypatch.undo()
    assert (tmp_path / "b" / "checkpoint-2").is_dir()
    rest = ByLength()
    again = train_online(
        resumed, PROMPTS, objective="rlhf", config=chosen, scorer=rest, checkpoints=tmp_path / "b"
    )
    assert len(rest.judged) == 3 * 6, "steps 3, 4 and 5 are made again, and no other"
    assert again["generated_tokens"] == through["generated_tokens"]
    before = weights(load_policy("pocket:chat").model)
    assert any(not torch.equal(value, before[name]) for name, value in weights(whole.model).items())
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_that_trl_finds(temperature: float, tmp_path: Path) -> None:
    policy = load_policy("pocket:chat")
    arguments = RLOOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=2, beta=0.0,
        temperature=temperature, gradient_checkpointing=None,
    )  # fmt: skip
    trainer = PlannedRLOOTrainer(
        policy.model, arguments, planned=2, tokenizer=policy.tokenizer, answer=lambda *_: Answered([], [], []),
        components=["helpfulness"], rewarded=lambda *_: {},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, 9, (20,), generator=generator)
    responses = torch.randint(1, 12, (20,), generator=generator)
    ids = torch.randint(5, 200, (20, 8 + 11), generator=generator)
    column = torch.arange(8 + 11)
    mask = ((column >= 8 - prompts[:, None]) & (column < 8 + responses[:, None])).long()
    ours, entropies, _ = trainer._get_per_token_logps_and_entropies(policy.model, ids, mask, 11, compute_entropy=True)
    theirs, _, _ = super(PlannedRLOOTrainer, trainer)._get_per_token_logps_and_entropies(policy.model, ids, mask, 11)
    inside = mask[:, 8:].bool()
    torch.testing.assert_close(ours[inside], theirs[inside], atol=1e-4, rtol=1e-4)
    assert (ours[~inside] == 0).all() and ours.requires_grad and theirs.requires_grad
    assert entropies is not None and torch.equal(entropies, -ours.detach())
    for found in (ours, theirs):
        policy.model.zero_grad()
        (found * inside).sum().backward()
        gradients = [each.grad.clone() for each in policy.model.parameters() if each.grad is not None]
        if found is ours:
            own = gradients
    for one, other in zip(own, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_adapters_train_merge_and_are_saved_without_the_reference(tmp_path: Path) -> None:
    policy = load_policy("pocket:chat")
    before = weights(policy.model)
    chosen = config(2, train={"lora": "{rank: 2}"})
    figures = train_online(
        policy, PROMPTS, objective="rlhf", config=chosen, scorer=ByLength(), checkpoints=tmp_path / "c",
        adapter=tmp_path / "adapter",
    )  # fmt: skip
    assert figures["log"][0]["kl"] == 0 and figures["trained_parameters"] < figures["parameters"]
    after = weights(policy.model)
    assert set(after) == set(before)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "ref").exists()


def test_a_step_in_several_passes_is_the_same_step(tmp_path: Path) -> None:
    found = []
    for passes in (1, 3):
        policy = load_policy("pocket:chat")
        chosen = config(1, train={"accumulation": passes})
        train_online(
            policy, PROMPTS, objective="rlhf", config=chosen, scorer=ByLength(), checkpoints=tmp_path / str(passes)
        )
        found.append(weights(policy.model))
    start = weights(load_policy("pocket:chat").model)
    moved = max(float((found[0][name] - start[name]).abs().max()) for name in start)
    apart = max(float((found[0][name] - found[1][name]).abs().max()) for name in start)
    assert apart < 0.05 * moved
    with pytest.raises(InputError, match="train.accumulation: got 4, allowed is what divides a step's 6 responses"):
        train_online(
            policy, PROMPTS, objective="rlhf", config=config(1, train={"accumulation": 4}), scorer=ByLength(),
            checkpoints=tmp_path / "4",
        )  # fmt: skip


def test_the_reward_rises(tmp_path: Path) -> None:
    """All controls ask for answers that are hardly helpful and quite safe, which are those of few letters."""
    chosen = config(21, train={"learning_rate": 2e-3}, prompts=4, samples=6, beta=0.0)
    levels = {"helpfulness": [0.0, 0.25], "safety": [0.75, 1.0]}
    chosen = validate({**chosen.model_dump(mode="json"), "levels": levels})
    log = train_online(
        load_policy("pocket:chat"), PROMPTS, objective="rlhf", config=chosen, scorer=ByLength(), checkpoints=tmp_path
    )["log"]
    assert [entry["step"] for entry in log] == [1, 11, 21]
    assert log[-1]["reward"] > log[0]["reward"] + 0.3


def test_a_training_without_trl_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "rheostat.rloo_trainer")
    monkeypatch.delattr("rheostat.rloo_trainer")
    with pytest.raises(InputError) as caught:
        train_online(
            load_policy("pocket:chat"), PROMPTS, objective="rlhf", config=config(1), scorer=ByLength(),
            checkpoints=tmp_path,
        )  # fmt: skip
    assert caught.value.hint == "pip install 'rheostat[rlhf]'"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else find(name))
    with pytest.raises(ConfigError, match="methods: rlhf is trained by TRL, which is not here: pip install"):
        preflight.check(load_config("pocket", ["methods=[rlhf]"]))


def test_passes_that_do_not_divide_a_step_are_told_of_beforehand() -> None:
    given = ["methods=[rlhf]", "train.objectives={rlhf: {prompts: 3, samples: 4}}"]
    preflight.check(load_config("pocket", [*given, "train.accumulation=6"]))
    with pytest.raises(ConfigError) as caught:
        preflight.check(load_config("pocket", [*given, "train.overrides={rlhf: {accumulation: 5}}"]))
    assert caught.value.problems == (
        "train.overrides.rlhf.accumulation: got 5 for rlhf, allowed is what divides a step's 3 prompts · 4 samples; "
        "train.overrides.rlhf.accumulation=1 does",
    )


def test_what_learns_from_prompts_needs_no_distillation() -> None:
    found = trainings(load_config("pocket", ["methods=[rlhf, rlhf+from_exmate, rlhf+x0.5]"]))
    assert [each.stage for each in found] == [
        "train/rlhf-prompts",
        "train/exmate-moec",
        "train/rlhf-prompts-from-exmate-moec",
        "train/rlhf-prompts+x0.5",
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose methods learn from prompts alone, from the base and from ExMATE's model, by the command line."""
    out = tmp_path_factory.mktemp("rlhf") / "run"
    values = (
        "methods=[base, rlhf, rlhf+from_exmate]", "prompts.train_limit=8", "prompts.evaluation_limit=2",
        "prompts.generalization=null", "judges={}", "suite=null", "generate.samples=8", "generate.max_tokens=24",
        "evaluate.max_tokens=12", "evaluate.reachable_samples=4", "evaluate.forged_prompts=1",
        "evaluate.bootstrap=100", "prompts.calibration_limit=1", "distil.minimum_contrast=0", "train.steps=2",
        "train.batch_size=4", "train.objectives={rlhf: {prompts: 2, samples: 2}}",
        "train.overrides={rlhf: {steps: 3, learning_rate: 1e-4}}",
    )  # fmt: skip
    result = CliRunner().invoke(
        cli.app, ["run", "pocket", "--out", str(out), *(part for each in values for part in ("--set", each))]
    )
    assert result.exit_code == 0, result.output
    return out


def test_a_run_trains_evaluates_and_counts_what_was_generated(run: Path) -> None:
    measured = json.loads((run / "evaluation.json").read_text())["evaluations"]["optimization"]
    for name, stage in (("rlhf", "rlhf-prompts"), ("rlhf+from_exmate", "rlhf-prompts-from-exmate-moec")):
        summary = json.loads((run / "train" / stage / "done.json").read_text())["summary"]
        assert (summary["steps"], summary["responses"], summary["learning_rate"]) == (3, 12, 1e-4)
        assert {"reward/helpfulness", "reward/safety", "kl", "seconds"} <= set(summary["log"][0])
        assert summary["log"][0]["kl"] == 0, "the reference is where the training started"
        assert measured[name]["cost"]["training_generated_tokens"] == summary["generated_tokens"] > 0
        assert measured[name]["has_dial"]
    assert measured["base"]["cost"]["training_generated_tokens"] == 0
    assert (run / "report.html").is_file()


def test_other_levels_are_another_training(run: Path) -> None:
    """The controls that a training asks under are not in the pool's fingerprint: they are in its own."""
    with RunDirectory.open(run, read_only=True) as directory:
        usual = load_config(directory.config_path)
        (wanted,) = [each for each in trainings(usual) if each.stage == "train/rlhf-prompts"]
        fewer = usual.model_copy(update={"levels": [0.0, 1.0]})
        again = load_config(run / "config.yaml")
        assert learned_from(directory, wanted, usual) == learned_from(directory, wanted, again)
        assert learned_from(directory, wanted, usual) != learned_from(directory, wanted, fewer)


def test_an_export_of_what_learned_from_prompts_says_so(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["export", str(run), "--method", "rlhf", "--to", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    card = (tmp_path / "model" / "README.md").read_text()
    assert "answers that it wrote while it was trained" in card and "became training examples" not in card
