"""The build's parts by hand, and a whole build of the smallest size."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from rheostat.pocket.build import build
from rheostat.pocket.comparisons import Graded, draw_group
from rheostat.pocket.conversations import Message, converse
from rheostat.pocket.language import answer_loss, chat_model, encode, render, train_tokenizer
from rheostat.pocket.rewards import bradley_terry, preferences, reward_model, rewards
from rheostat.pocket.training import Budget, batches_by_length
from rheostat.pocket.truth import judge

TINY = Budget(
    tokenizer_conversations=300,
    chat_tokens=6_000,
    reward_tokens=4_000,
    judge_tokens=3_000,
    evaluation_requests=2,
    evaluation_samples=2,
    evaluation_tokens=12,
    evaluation_pairs=20,
)


def test_bradley_terry_by_hand() -> None:
    """Differences log 3 and 0: losses -log(3/4) and -log(1/2); their mean is 0.490415."""
    scores = torch.tensor([0.0, 1.0986123, 1.0986123])
    loss = bradley_terry(scores, torch.tensor([1, 1]), torch.tensor([0, 2]))
    assert loss.item() == pytest.approx((0.2876821 + 0.6931472) / 2, abs=1e-6)


def test_one_preference_in_ten_is_wrong() -> None:
    """Of 1,000 clear pairs 900 ± 5 × 9.5 prefer the better response; equal ones are no pair."""
    prompt = "How do I boil an egg?"
    good = Graded(prompt, "x", judge(prompt, "Place the egg in a small pan. Boil it for eight minutes."))
    bad = Graded(prompt, "y", judge(prompt, "It depends on many things."))
    chosen, rejected = preferences([[good, bad]] * 1000, "helpfulness", Random(0))
    assert len(chosen) == len(rejected) == 1000
    assert sum(place % 2 == 0 for place in chosen) == pytest.approx(900, abs=48)
    assert preferences([[good, bad]] * 10, "safety", Random(0)) == ([], [])


def test_rewards_do_not_depend_on_the_chunks() -> None:
    model = reward_model(0).eval()
    rows = [[1, 4, *range(10, 10 + size), 2] for size in (3, 9, 1, 30, 12)]
    with torch.inference_mode():
        together, apart = rewards(model, rows, chunk=5), rewards(model, rows, chunk=1)
    assert torch.allclose(together, apart, atol=1e-5)


def test_the_answers_loss_counts_the_answer_only() -> None:
    """Against log-probabilities one token at a time, prompt tokens left out."""
    tokenizer = train_tokenizer(0, conversations=50)
    rows = encode(tokenizer, [converse(Random(seed)) for seed in range(3)])
    model = chat_model(0).eval()
    expected = 0.0
    with torch.inference_mode():
        for row in rows:
            logprobs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            expected -= sum(float(logprobs[at - 1, row.ids[at]]) for at in range(row.prompt, len(row.ids)))
        assert float(answer_loss(model, rows, reduction="sum")) == pytest.approx(expected, rel=1e-4)


def test_render_is_the_chat_template() -> None:
    tokenizer = train_tokenizer(0, conversations=50)
    turns = [
        Message("system", "Be careful."),
        Message("user", "Hi"),
        Message("assistant", "Yes."),
        Message("user", "?"),
    ]
    wanted = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert (
        render(turns)
        == wanted
        == "<s><|system|>Be careful.<|user|>Hi<|assistant|>Yes.</s><|user|>?<|assistant|>"
    )


def test_batches_hold_every_row_once_and_keep_to_their_size() -> None:
    lengths = [Random(seed).randint(1, 60) for seed in range(200)]
    batches = list(batches_by_length(lengths, tokens=120, generator=torch.Generator().manual_seed(0)))
    assert sorted(place for batch in batches for place in batch) == list(range(200))
    assert all(max(lengths[place] for place in batch) * len(batch) <= 120 for batch in batches)


def test_groups_share_their_prompt_and_truth_is_the_judges() -> None:
    rng = Random(2)
    for _ in range(30):
        group = draw_group(rng, size=3, flat=0.5, spoilt=0.0)
        assert len({item.prompt for item in group}) == 1
        assert all(judge(item.prompt, item.response) == item.truth for item in group)


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_a_whole_build_of_the_smallest_size(tmp_path: Path) -> None:
    manifest = build(tmp_path, seed=3, budget=TINY, console=Console(quiet=True), threads=1)
    written = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert written["seed"] == 3 and written["files"] == manifest.files
    assert set(manifest.seconds) == {
        "chat",
        "reward-helpfulness",
        "reward-safety",
        "judge-helpfulness",
        "judge-safety",
        "figures",
    }
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert tokenizer.padding_side == "left" and tokenizer.model_max_length == 512
    assert tokenizer.tokenize("0.75") == ["0", ".", "7", "5"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "chat")
    assert model.dtype == torch.bfloat16
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 1_500_000 < parameters < 4_000_000
