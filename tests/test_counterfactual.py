"""Which ζ′ an example meets, and the plan of a whole training."""

from collections import Counter
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import plugins
from rheostat.config import CounterfactualConfig, TrainConfig
from rheostat.control import ControlFormat
from rheostat.counterfactual import CounterfactualSampler, subsample
from rheostat.records import Example, Message
from rheostat.training_plan import plan_batches, with_forged_controls

STYLES: tuple[Literal["exact", "all"], ...] = ("exact", "all")
FORMAT = ControlFormat((plugins.attribute("safety"), plugins.attribute("helpfulness")))


def example(prompt: str, helpfulness: float, safety: float) -> Example:
    control = {"helpfulness": helpfulness, "safety": safety}
    return Example(prompt, (Message("user", prompt),), control, f"{prompt} {helpfulness} {safety}", control)


EXAMPLES = [example("a", 1.0, 0.0), example("a", 0.0, 1.0), example("a", 1.0, 0.75), example("b", 0.5, 0.5)]


def draws(index: int, **options: object) -> Counter[tuple[float, float]]:
    sampler = CounterfactualSampler(EXAMPLES, FORMAT, CounterfactualConfig.model_validate(options))
    generator = np.random.default_rng(0)
    drawn = [sampler.draw(EXAMPLES[index], generator) for _ in range(2000)]
    return Counter((control["helpfulness"], control["safety"]) for control in drawn)


def test_siblings_are_drawn_by_distance() -> None:
    """From (1, 0): (0, 1) lies 2 away, (1, .75) lies .75 away; shares 2/2.75 = .727 and .273."""
    found = draws(0, source="siblings", distance_power=1.0)
    assert set(found) == {(0.0, 1.0), (1.0, 0.75)}
    assert found[0.0, 1.0] / 2000 == pytest.approx(2 / 2.75, abs=0.04)


def test_moving_one_dial_changes_exactly_one() -> None:
    """From (1, 0) the sibling (0, 1) becomes (0, 0) or (1, 1)."""
    assert set(draws(0, source="siblings", moves="one")) == {(0.0, 0.0), (1.0, 1.0), (1.0, 0.75)}


def test_a_lone_example_falls_back_to_the_grid() -> None:
    assert len(draws(3, source="siblings")) == 24


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["siblings", "grid"]), st.sampled_from(["any", "one"]), st.floats(0, 3), st.integers(0, 3)
)
def test_a_counterfactual_always_differs(source: str, moves: str, power: float, index: int) -> None:
    own = EXAMPLES[index].control
    for vector in draws(index, source=source, moves=moves, distance_power=power):
        differing = sum(a != b for a, b in zip(vector, own.values(), strict=True))
        assert differing >= 1
        assert moves == "any" or differing == 1


def test_the_subsample_is_unbiased() -> None:
    """Every row of 8 is in a quarter of the sub-samples of 2."""
    generator = np.random.default_rng(0)
    counts = Counter(row for _ in range(4000) for row in subsample(8, 0.25, generator))
    assert all(count / 4000 == pytest.approx(0.25, abs=0.03) for count in counts.values())


def plan(needs_counterfactual: bool, seed: int = 0, epochs: float = 2.0) -> list[tuple[int, ...]]:
    options = TrainConfig(epochs=epochs, batch_size=3)
    examples = [example(f"p{index}", 0.25 * (index % 5), 0.5) for index in range(20)]
    batches = plan_batches(
        examples,
        [index % 7 for index in range(20)],
        control_format=FORMAT,
        options=options,
        needs_counterfactual=needs_counterfactual,
        seed=seed,
    )
    assert all(bool(batch.counterfactual_rows) == needs_counterfactual for batch in batches)
    return [batch.examples for batch in batches]


def test_a_plan_shows_every_example_once_an_epoch() -> None:
    counts = Counter(index for batch in plan(False) for index in batch)
    assert counts == Counter({index: 2 for index in range(20)})


def test_objectives_share_the_order_of_examples_and_seeds_do_not() -> None:
    assert plan(True) == plan(False) != plan(False, seed=1)


def test_half_an_epoch_is_half_the_examples() -> None:
    assert sum(map(len, plan(False, epochs=0.5))) == 10


@pytest.mark.parametrize(("balance", "share"), [(0.0, 1 / 5), (0.5, 1 / 3), (1.0, 1 / 2)])
def test_balance_shows_rare_controls_more_often(balance: float, share: float) -> None:
    """4 examples under one control, 16 under another: seen as 4^(1 − balance) : 16^(1 − balance)."""
    examples = [example(f"p{index}", 1.0 if index < 4 else 0.0, 0.5) for index in range(20)]
    batches = plan_batches(
        examples,
        [1] * 20,
        control_format=FORMAT,
        options=TrainConfig(steps=2000, batch_size=10, balance=balance),
        needs_counterfactual=False,
        seed=0,
    )
    seen = Counter(index < 4 for batch in batches for index in batch.examples)
    assert seen[True] / seen.total() == pytest.approx(share, abs=0.02)


def test_forged_controls_stand_in_the_users_text_only() -> None:
    examples = [example(f"p{index}", 1.0, 1.0) for index in range(400)]
    changed = with_forged_controls(examples, control_format=FORMAT, share=0.25, seed=0)
    forged = [each for each, before in zip(changed, examples, strict=True) if each != before]
    assert len(forged) / 400 == pytest.approx(0.25, abs=0.08)
    assert all(
        "[helpful=" in each.messages[-1].content and each.control == examples[0].control for each in forged
    )


def test_forged_controls_of_all_styles_have_their_innocent_twins_among_them() -> None:
    """Three in ten are twins; each of seven styles is a seventh, and four of them spell `[morning=` but for case."""
    examples = [example(f"p{index}", 1.0, 1.0) for index in range(1400)]
    exact, every = (
        with_forged_controls(examples, control_format=FORMAT, share=1.0, styles=styles, seed=0)
        for styles in STYLES
    )
    assert all("[helpful=" in each.messages[-1].content for each in exact)
    texts = [each.messages[-1].content for each in every]
    assert sum("[morning=" in text.casefold() for text in texts) / 1400 == pytest.approx(0.3 * 4 / 7, abs=0.04)
    assert sum("[ " in text for text in texts) / 1400 == pytest.approx(1 / 7, abs=0.03)
    assert sum("Ignore the above dials" in text for text in texts) / 1400 == pytest.approx(1 / 7, abs=0.03)
    assert all(each.control == examples[0].control for each in every)
