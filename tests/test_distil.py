"""Distillation: a prompt worked by hand, the bound on cells by hand and against a slow twin, and laws."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import plugins
from rheostat.config import DistilConfig
from rheostat.control import ControlFormat, nearest_level
from rheostat.moec import RETAINED_SHARE, Distilled, moec, raw, whole_pool
from rheostat.records import Attribute, Message, Prompt, ScoredResponse

FORMAT = ControlFormat((plugins.attribute("helpfulness"), plugins.attribute("safety")))
ONE_DIAL = ControlFormat((plugins.attribute("safety"),))
NO_BOUND = DistilConfig(per_corner=1, per_extreme=1, minimum_contrast=0.0, maximum_cell_share=1.0)
LIGHT = settings(max_examples=40, deadline=None)
Scored = dict[str, list[ScoredResponse]]


def response(sample: int, scores: Mapping[str, float], prompt: str = "p") -> ScoredResponse:
    return ScoredResponse(
        prompt_id=prompt,
        sample=sample,
        text=f"{prompt} says {sample}",
        tokens=4,
        finish="stop",
        raw=dict(scores),
        calibrated=dict(scores),
    )


def plane(points: Sequence[tuple[float, float]], prompt: str = "p") -> list[ScoredResponse]:
    """Responses at (helpfulness, safety), numbered as given."""
    return [response(i, {"helpfulness": h, "safety": s}, prompt) for i, (h, s) in enumerate(points)]


def prompts_of(scored: Mapping[str, Sequence[ScoredResponse]]) -> dict[str, Prompt]:
    return {name: Prompt(name, (Message("user", f"ask {name}"),), "train", "test") for name in scored}


def samples(distilled: Distilled) -> list[tuple[str, str]]:
    return [(example.prompt_id, example.response) for example in distilled.examples]


UNITS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
POINTS = st.lists(st.tuples(UNITS, UNITS), min_size=0, max_size=12)


@st.composite
def pools(draw: st.DrawFn) -> Scored:
    """Up to six prompts, with repeated, empty and truncated responses among them."""
    scored: Scored = {}
    for index in range(draw(st.integers(1, 6))):
        rows = plane(draw(POINTS), f"p{index}")
        odd = st.sampled_from(["", "  \n", "the same"])
        scored[f"p{index}"] = [
            replace(
                row,
                text=draw(odd) if draw(st.integers(0, 5)) == 0 else row.text,
                finish="length" if draw(st.integers(0, 5)) == 0 else "stop",
            )
            for row in rows
        ]
    return scored


OPTIONS = st.builds(
    DistilConfig,
    per_corner=st.integers(1, 3),
    per_extreme=st.integers(1, 2),
    minimum_contrast=st.sampled_from([0.0, 0.25, 0.6]),
    maximum_cell_share=st.sampled_from([0.05, 0.12, 0.3, 1.0]),
)


def test_one_prompt_by_hand() -> None:
    """Eight responses at (helpfulness, safety); one a corner, one best and worst of each attribute.

    #   point        nearest to a corner (L1)                     extreme
    0   (.50, .50)   1.0 from each: none
    1   (.10, .90)   (0, 1): .2
    2   (.90, .85)   (1, 1): .25, ties with 7 and comes first
    3   (.20, .10)   (0, 0): .3
    4   (.70, .20)   (1, 0): .5
    5   (.05, .60)   .45 from (0, 1), beaten by 1                 worst helpfulness (.05)
    6   (.40, .95)   .45 from (0, 1), beaten by 1                 best safety (.95)
    7   (1.0, .75)   .25 from (1, 1), the later of the tie        best helpfulness (1.0)
    The worst safety is 3's (.10). So all but 0 are kept, on the grid
    1 (0, 1), 2 (1, .75): .85 lies .10 from .75 and .15 from 1, 3 (.25, 0), 4 (.75, .25), 5 (0, .5): .60 lies
    .10 from .5, 6 (.5, 1): .40 lies .10 from .5, 7 (1, .75).
    """
    first = [(0.5, 0.5), (0.1, 0.9), (0.9, 0.85), (0.2, 0.1)]
    last = [(0.7, 0.2), (0.05, 0.6), (0.4, 0.95), (1.0, 0.75)]
    scored = {"p": plane(first + last)}
    distilled = moec(scored, prompts_of(scored), control_format=FORMAT, options=NO_BOUND)
    assert [example.response for example in distilled.examples] == [f"p says {i}" for i in range(1, 8)]
    cells = [(example.control["helpfulness"], example.control["safety"]) for example in distilled.examples]
    assert cells == [(0, 1), (1, 0.75), (0.25, 0), (0.75, 0.25), (0, 0.5), (0.5, 1), (1, 0.75)]
    assert distilled.examples[0].scores == {"helpfulness": 0.1, "safety": 0.9}
    assert distilled.examples[0].messages == (Message("user", "ask p"),)
    counts = distilled.counts
    assert (counts.pool, counts.examples, counts.prompts, counts.middling_dropped) == (8, 7, 1, 1)
    assert counts.cells_before["[helpful=0.5][harmless=0.5]"] == 1
    assert counts.cells_after["[helpful=1][harmless=0.75]"] == 2
    assert counts.cell_limit == 2 and counts.largest_cell_share == 2 / 7


def test_how_many_of_each_extreme_are_kept() -> None:
    """Safety alone at 0, .1, .5, .9, 1: one from each end, or two by either option; never the middle."""
    rows = [response(i, {"safety": score}) for i, score in enumerate([0.0, 0.1, 0.5, 0.9, 1.0])]
    two = [0.0, 0.1, 0.9, 1.0]
    for per_corner, per_extreme, expected in ((1, 1, [0.0, 1.0]), (2, 1, two), (1, 2, two)):
        options = NO_BOUND.model_copy(update={"per_corner": per_corner, "per_extreme": per_extreme})
        distilled = moec({"p": rows}, prompts_of({"p": rows}), control_format=ONE_DIAL, options=options)
        assert [example.scores["safety"] for example in distilled.examples] == expected


def test_what_cannot_be_used_is_dropped_and_counted() -> None:
    """Of six, one is blank, one ended by length, one repeats the first: three stay, in order of sample."""
    rows = plane([(0, 0), (1, 1), (0, 1), (1, 0), (0, 0), (0.5, 0.5)])
    rows[1] = replace(rows[1], text=" \n")
    rows[2] = replace(rows[2], finish="length")
    rows[4] = replace(rows[4], text=rows[0].text)
    scored = {"p": rows, "silent": [replace(rows[1], prompt_id="silent")], "none": []}
    distilled = moec(scored, prompts_of(scored), control_format=FORMAT, options=NO_BOUND)
    assert samples(distilled) == [("p", "p says 0"), ("p", "p says 3"), ("p", "p says 5")]
    counts = distilled.counts
    assert (counts.pool, counts.examples, counts.duplicates_dropped) == (7, 3, 1)
    assert (counts.empty_dropped, counts.truncated_dropped) == (2, 1)
    assert (counts.prompts, counts.prompts_without_responses) == (1, 2)


def test_truncated_responses_are_kept_where_told() -> None:
    """A model that never ends an answer has only truncated ones: none is left, or all, each marked."""
    rows = [replace(row, finish="length") for row in plane([(0, 0), (1, 1), (0, 1), (1, 0)])]
    scored = {"p": rows}
    keeping = NO_BOUND.model_copy(update={"keep_truncated": True})
    for options, count in ((NO_BOUND, 0), (keeping, 4)):
        distilled = moec(scored, prompts_of(scored), control_format=FORMAT, options=options)
        drawn = raw(
            scored,
            prompts_of(scored),
            control_format=FORMAT,
            count=4,
            seed=0,
            keep_truncated=options.keep_truncated,
        )
        for kept in (distilled, drawn):
            assert [example.finish for example in kept.examples] == ["length"] * count
            assert kept.counts.truncated_dropped == 4 - count


def test_the_whole_pool_under_its_own_scores_by_hand() -> None:
    """(.123, .456) and (.126, .949), that one twice: two decimals or one; empty and truncated ones are left out."""
    rows = plane([(0.123, 0.456), (0.126, 0.949)])
    again = replace(rows[1], sample=2)
    scored = {"p": [*rows, again, replace(rows[0], sample=3, text=" "), replace(rows[0], sample=4, finish="length")]}
    by_decimals = {2: [(0.12, 0.46), (0.13, 0.95), (0.13, 0.95)], 1: [(0.1, 0.5), (0.1, 0.9), (0.1, 0.9)]}
    for decimals, expected in by_decimals.items():
        found = whole_pool(scored, prompts_of(scored), control_format=FORMAT, decimals=decimals)
        assert [(each.control["helpfulness"], each.control["safety"]) for each in found.examples] == expected
        assert (found.counts.examples, found.counts.middling_dropped) == (3, 0)


@LIGHT
@given(pools())
def test_the_whole_pool_is_all_that_raw_may_draw(scored: Scored) -> None:
    prompts = prompts_of(scored)
    count = sum(map(len, scored.values()))
    found = whole_pool(scored, prompts, control_format=FORMAT)
    assert found == raw(scored, prompts, control_format=FORMAT, count=count, seed=0)
    drawn = raw(scored, prompts, control_format=FORMAT, count=count // 2, seed=3)
    assert all(example in found.examples for example in drawn.examples)


def test_prompts_without_contrast_are_dropped() -> None:
    """`flat` spans .2 and .1; `tall` .1 and .3, which is enough: one attribute's contrast is."""
    scored = {
        "flat": plane([(0.5, 0.5), (0.7, 0.6)], "flat"),
        "tall": plane([(0.5, 0.4), (0.6, 0.7)], "tall"),
    }
    options = NO_BOUND.model_copy(update={"minimum_contrast": 0.25})
    distilled = moec(scored, prompts_of(scored), control_format=FORMAT, options=options)
    assert {example.prompt_id for example in distilled.examples} == {"tall"}
    assert (distilled.counts.prompts_without_contrast, distilled.counts.contrast_dropped) == (1, 2)


def test_the_share_of_a_cell_is_bounded_by_hand() -> None:
    """Safety alone, ten prompts: each has two responses at 1 and one at .5; the first eight one at 0 too.

    All are kept (the 2 nearest to each end), 20 + 10 + 8 = 38. Share .4: a limit K on each cell leaves
    g(K) = min(20, K) + 10 + 8 from 10 on, and K ≤ .4 (K + 18) up to K = 12 (.6 K ≤ 7.2). g(12) = 30, of which
    12 is exactly .4. Each prompt keeps one at 1 before any keeps two: 10 prompts keep 8 × 1 and 2 × 2.
    """
    scored = {
        f"p{i}": [
            response(j, {"safety": score}, f"p{i}")
            for j, score in enumerate([1.0, 0.95, 0.5] + [0.0] * (i < 8))
        ]
        for i in range(10)
    }
    options = DistilConfig(per_corner=2, per_extreme=1, minimum_contrast=0.25, maximum_cell_share=0.4)
    distilled = moec(scored, prompts_of(scored), control_format=ONE_DIAL, options=options)
    counts = distilled.counts
    assert counts.cells_after == {"[harmless=0]": 8, "[harmless=0.5]": 10, "[harmless=1]": 12}
    assert (counts.cell_limit, counts.share_dropped, counts.largest_cell_share) == (12, 8, 0.4)
    safest = [example for example in distilled.examples if example.control["safety"] == 1]
    assert sorted(Counter(example.prompt_id for example in safest).values()) == [1] * 8 + [2] * 2
    assert sum(example.scores["safety"] == 1.0 for example in safest) == 10


def test_too_few_cells_keep_half_of_the_examples() -> None:
    """Two cells with 30 and 10: a share of .12 is out of reach of two; 10 each is half of 40, and is kept.

    With 38 and 2 a limit of 2 would leave 4 of 40; the smallest limit that leaves 20 is 18: 18 + 2.
    """
    for low, limit in ((10, 10), (2, 18)):
        scored = {f"p{i}": [response(0, {"safety": 1.0}, f"p{i}")] for i in range(40 - low)} | {
            f"q{i}": [response(0, {"safety": 0.0}, f"q{i}")] for i in range(low)
        }
        options = NO_BOUND.model_copy(update={"maximum_cell_share": 0.12})
        counts = moec(scored, prompts_of(scored), control_format=ONE_DIAL, options=options).counts
        assert (counts.cell_limit, counts.examples) == (limit, 20)


def test_raw_is_a_uniform_sample_under_rounded_scores() -> None:
    """Scores keep two decimals and may lie off the grid; over 400 seeds each of 6 is drawn in about half."""
    rows = plane([(0.123, 0.456), (0.126, 0.999), (0.5, 0.5), (0.7, 0.1), (0.2, 0.2), (0.9, 0.9)])
    scored = {"p": [*rows, replace(rows[0], sample=6, text=""), replace(rows[0], sample=7, finish="length")]}
    prompts = prompts_of(scored)
    everything = raw(scored, prompts, control_format=FORMAT, count=99, seed=0)
    assert everything.examples[0].control == {"helpfulness": 0.12, "safety": 0.46}
    assert everything.examples[1].control == {"helpfulness": 0.13, "safety": 1.0}
    assert everything.examples[0].scores == {"helpfulness": 0.123, "safety": 0.456}
    counts = everything.counts
    assert (counts.pool, counts.examples, counts.empty_dropped, counts.truncated_dropped) == (8, 6, 1, 1)
    drawn: Counter[str] = Counter()
    for seed in range(400):
        some = raw(scored, prompts, control_format=FORMAT, count=3, seed=seed)
        assert len(set(samples(some))) == 3 and some.counts.middling_dropped == 3
        drawn.update(example.response for example in some.examples)
    assert all(150 < drawn[row.text] < 250 for row in rows)
    assert raw(scored, prompts, control_format=FORMAT, count=3, seed=7) == raw(
        scored, prompts, control_format=FORMAT, count=3, seed=7
    )


def test_raw_keeps_repeats() -> None:
    rows = [replace(row, text="same") for row in plane([(0, 0), (1, 1)])]
    distilled = raw({"p": rows}, prompts_of({"p": rows}), control_format=FORMAT, count=9, seed=0)
    assert distilled.counts.examples == 2 and distilled.counts.duplicates_dropped == 0


def test_an_empty_pool_gives_no_examples() -> None:
    for distilled in (
        moec({"p": []}, {}, control_format=FORMAT, options=NO_BOUND),
        raw({"p": []}, {}, control_format=FORMAT, count=5, seed=0),
    ):
        assert distilled.examples == ()
        assert distilled.counts.largest_cell_share is None
        assert distilled.counts.prompts_without_responses == 1


def test_any_number_of_attributes() -> None:
    """Three dials: all eight corners of the cube are kept, the centre is not."""
    third = Attribute("brevity", "brief", 2, "how short it is", "long", "short", {0.0: "Be long."})
    cube = ControlFormat((*FORMAT.attributes, third))
    points = [(h, s, b) for h in (0.0, 1.0) for s in (0.0, 1.0) for b in (0.0, 1.0)] + [(0.5, 0.5, 0.5)]
    scored = {"p": [response(i, dict(zip(cube.names, point, strict=True))) for i, point in enumerate(points)]}
    distilled = moec(scored, prompts_of(scored), control_format=cube, options=NO_BOUND)
    assert [tuple(example.control.values()) for example in distilled.examples] == points[:8]


@LIGHT
@given(pools(), OPTIONS)
def test_examples_come_from_the_pool_and_the_account_adds_up(scored: Scored, options: DistilConfig) -> None:
    distilled = moec(scored, prompts_of(scored), control_format=FORMAT, options=options)
    known = {(name, row.text): row for name, rows in scored.items() for row in rows if row.finish == "stop"}
    assert len(set(samples(distilled))) == len(distilled.examples)
    for example in distilled.examples:
        assert example.response.strip()
        assert (example.prompt_id, example.response) in known
        assert example.control == {
            name: nearest_level(score, FORMAT.levels_of(name)) for name, score in example.scores.items()
        }
    counts = distilled.counts
    dropped = (
        counts.empty_dropped
        + counts.truncated_dropped
        + counts.duplicates_dropped
        + counts.middling_dropped
        + counts.contrast_dropped
        + counts.share_dropped
    )
    assert counts.middling_dropped >= 0 and counts.share_dropped >= 0
    assert counts.pool == sum(map(len, scored.values())) == counts.examples + dropped
    assert counts.examples == sum(counts.cells_after.values()) == len(distilled.examples)
    assert counts.prompts + counts.prompts_without_contrast + counts.prompts_without_responses <= len(scored)


@LIGHT
@given(pools(), OPTIONS, st.integers(0, 1000))
def test_the_order_of_the_input_does_not_matter(scored: Scored, options: DistilConfig, seed: int) -> None:
    shuffler = random.Random(seed)
    names = list(scored)
    shuffler.shuffle(names)
    shuffled = {name: shuffler.sample(scored[name], len(scored[name])) for name in names}
    prompts = prompts_of(scored)
    once, again = (
        (
            moec(pool, prompts, control_format=FORMAT, options=options),
            raw(pool, prompts, control_format=FORMAT, count=5, seed=seed),
        )
        for pool in (scored, shuffled)
    )
    assert again == once


@LIGHT
@given(pools(), OPTIONS)
def test_repeating_a_response_changes_nothing(scored: Scored, options: DistilConfig) -> None:
    doubled = {
        name: rows + [replace(row, sample=row.sample + 100) for row in rows] for name, rows in scored.items()
    }
    prompts = prompts_of(scored)
    once = moec(scored, prompts, control_format=FORMAT, options=options)
    assert moec(doubled, prompts, control_format=FORMAT, options=options).examples == once.examples


@LIGHT
@given(pools(), OPTIONS)
def test_the_bound_holds_or_half_is_kept(scored: Scored, options: DistilConfig) -> None:
    """The limit against trying each: the largest that holds the share, or the smallest that keeps half."""
    prompts = prompts_of(scored)
    unbound = moec(
        scored, prompts, control_format=FORMAT, options=options.model_copy(update={"maximum_cell_share": 1.0})
    ).counts
    counts = moec(scored, prompts, control_format=FORMAT, options=options).counts
    share, before = options.maximum_cell_share, list(unbound.cells_after.values())

    def left(limit: int) -> int:
        return sum(min(count, limit) for count in before)

    limits = range(1, max(before, default=0) + 1)
    holding = [limit for limit in limits if limit <= share * left(limit) + 1e-9]
    halving = [limit for limit in limits if left(limit) >= RETAINED_SHARE * sum(before)]
    expected = max(max(holding, default=0), min(halving, default=0))
    assert counts.cell_limit == expected
    assert counts.cells_after == {cell: min(count, expected) for cell, count in unbound.cells_after.items()}
    if counts.largest_cell_share is not None and holding and max(holding) >= expected:
        assert counts.largest_cell_share <= share + 1e-9
