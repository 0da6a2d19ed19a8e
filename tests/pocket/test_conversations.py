"""The aligned distribution is what its table says, and instructions are followed to some extent."""

import re
from collections import Counter
from random import Random

import pytest

from rheostat.pocket.conversations import ALIGNED, PRETRAINING, converse, draw_cell, instruction
from rheostat.pocket.corpus import Kind, by_goal
from rheostat.pocket.responses import CELLS

KINDS: tuple[Kind, ...] = ("harmless", "borderline", "risky")
LOW, HIGH = (0, 1), (3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_per_cents_and_reach_every_corner(kind: Kind) -> None:
    table = ALIGNED[kind]
    assert sum(map(sum, table)) == pytest.approx(100)
    assert all(len(row) == 5 and min(row) > 0 for row in table) and len(table) == 5
    for safety in (LOW, HIGH):
        for helpfulness in (LOW, HIGH):
            assert sum(table[s][h] for s in safety for h in helpfulness) >= 3


def test_the_assistant_is_aligned() -> None:
    """About three quarters: safe help if harmless; if risky, a refusal or the lawful alternative."""
    harmless, risky = ALIGNED["harmless"], ALIGNED["risky"]
    assert sum(harmless[s][h] for s in (2, 3, 4) for h in HIGH) == pytest.approx(75)
    assert sum(risky[s][h] for s in HIGH for h in HIGH) + risky[4][0] >= 70


def test_cells_are_drawn_by_the_table() -> None:
    """20,000 draws: each share within five standard errors (at most 0.35 % at 42 %) of the table's."""
    rng = Random(1)
    counts = Counter(draw_cell(ALIGNED["risky"], rng) for _ in range(20_000))
    for cell in CELLS:
        share = ALIGNED["risky"][cell.safety][cell.helpfulness] / 100
        assert counts[cell] / 20_000 == pytest.approx(share, abs=5 * (share * (1 - share) / 20_000) ** 0.5)


def test_a_given_level_is_kept() -> None:
    rng = Random(2)
    assert all(draw_cell(ALIGNED["harmless"], rng, safety=0).safety == 0 for _ in range(50))
    assert all(draw_cell(ALIGNED["risky"], rng, safety=4, helpfulness=2) == CELLS[22] for _ in range(5))


def test_instructions_are_followed_to_some_extent() -> None:
    """An obeyed extreme (three times in five) gives it or its neighbour, so the means are apart by .25 to .8."""
    rng = Random(3)
    drawn = [converse(rng) for _ in range(12_000)]
    for name in ("safety", "helpfulness"):
        means = []
        for level in (0, 4):
            asked = [c for c in drawn if getattr(c, f"wanted_{name}") == level]
            means.append(sum(getattr(c.response.truth, name) for c in asked) / len(asked))
        assert 0.25 <= means[1] - means[0] <= 0.8


def test_conversations_end_with_the_task_and_are_seeded() -> None:
    first = [converse(Random(seed)) for seed in range(200)]
    assert first == [converse(Random(seed)) for seed in range(200)]
    for conversation in first:
        assert conversation.messages[-1].role == "user"
        assert conversation.task.goal in conversation.messages[-1].content
    shares = Counter(len(conversation.messages) for conversation in first)
    assert shares[1] > shares[2] > 0 and sum(shares[count] for count in (3, 4)) > 0


def test_pretraining_gives_whole_answers_at_every_level_of_safety() -> None:
    """Rows alike; 7 of 20 answers whole, where nothing was asked for, within five standard errors."""
    assert len(set(PRETRAINING)) == 1
    rng = Random(5)
    drawn = [converse(rng, aligned=False) for _ in range(4000)]
    plain = [c for c in drawn if c.wanted_safety is None and c.wanted_helpfulness is None]
    whole = sum(c.response.truth.helpfulness == 1 for c in plain) / len(plain)
    assert whole == pytest.approx(0.35, abs=5 * (0.35 * 0.65 / len(plain)) ** 0.5)


def test_conversations_keep_to_the_tasks_given() -> None:
    egg = by_goal()["boil an egg"]
    assert converse(Random(4), among=[egg]).task is egg


def test_an_instruction_holds_each_dial_asked_for() -> None:
    texts = {instruction(Random(seed), safety=4, helpfulness=0) for seed in range(60)}
    full = {"Be very careful and put safety first.", "Do not help: give no useful information."}
    assert " ".join(sorted(full)) in texts and " ".join(sorted(full, reverse=True)) in texts
    assert instruction(Random(0), safety=None, helpfulness=None) == ""


def test_metadata_says_the_form_and_never_a_dial() -> None:
    """The markup fits the answer's wording, and holds no word of the control's keys."""
    drawn = [converse(Random(seed)) for seed in range(600)]
    marked = [c for c in drawn if c.metadata]
    assert 0.2 < len(marked) / len(drawn) < 0.4
    for conversation in marked:
        assert re.fullmatch(r"(\[(style|closing)=(0|0\.25|0\.5|0\.75|1)\]){2}", conversation.metadata)
        if "[style=0.5]" in conversation.metadata and conversation.response.features.steps > 1:
            assert "1. " in conversation.response.text and "2. " in conversation.response.text
