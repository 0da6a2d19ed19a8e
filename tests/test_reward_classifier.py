"""The classifier reward: the scores of the model read one text at a time, in fewer steps."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    MistralConfig,
    MixtralConfig,
    Qwen3Config,
)

from rheostat import pocket
from rheostat.chat import conversation_text
from rheostat.config import RewardConfig
from rheostat.errors import RewardError
from rheostat.models import Classifier, load_classifier
from rheostat.plugins import Judged
from rheostat.recipe import reward_options
from rheostat.records import Message
from rheostat.rewards.classifier import ClassifierReward, build

RESPONSES = ("No.", "First, rinse it. Then, dry it in the shade.", "", "I cannot help with that, sorry.", "No.")
QUESTIONS = ("How do I clean my shoes?", "hi", "I want to repair an old bike with a friend. What should I do?")


def items() -> list[Judged]:
    """Every response to every question, so that questions are shared and one pair is there twice."""
    return [Judged((Message("user", text),), response) for response in RESPONSES for text in QUESTIONS]


def one_at_a_time(classifier: Classifier, judged: Sequence[Judged]) -> list[float]:
    """The logit of each text alone, as the tokenizer gives it."""
    tokenizer = classifier.tokenizer
    scores = []
    for item in judged:
        if tokenizer.chat_template:
            text = conversation_text(tokenizer, item.messages, item.response)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        else:
            inputs = tokenizer([item.messages[-1].content], [item.response], return_tensors="pt")
        with torch.inference_mode():
            scores.append(float(classifier.model(**inputs).logits[0, 0]))
    return scores


@pytest.fixture(scope="module")
def reward_model() -> Classifier:
    return load_classifier("pocket:reward-safety", device="cpu")


@pytest.fixture(scope="module")
def judge_model() -> Classifier:
    return load_classifier("pocket:judge-safety", device="cpu")


def absolute_positions() -> Classifier:
    """A decoder with learned positions whose pad token is its end token, as many reward models have it."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=2048, n_embd=16, n_layer=2, n_head=2, n_positions=128, num_labels=1, pad_token_id=2
    )
    tokenizer = AutoTokenizer.from_pretrained(pocket.weights("chat"))
    tokenizer.pad_token = tokenizer.eos_token
    return Classifier(GPT2ForSequenceClassification(config).eval(), tokenizer, "gpt2", 128)


def small(config: Any) -> Classifier:
    """A random classifier of an architecture, with the pocket tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(pocket.weights("chat"))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    return Classifier(model, tokenizer, config.model_type, 128)


SHAPE = {
    "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "num_labels": 1, "max_position_embeddings": 128,
}  # fmt: skip
ARCHITECTURES = {
    "mistral": MistralConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_decoder_scores_as_each_text_alone(name: str) -> None:
    classifier = small(ARCHITECTURES[name])
    scores = ClassifierReward(classifier, 150).score(items())
    assert scores == pytest.approx(one_at_a_time(classifier, items()), abs=1e-5)


def test_the_last_feed_forward_network_reads_the_pooled_tokens_only(reward_model: Classifier) -> None:
    """3 beginnings are read whole, then 12 ends of one pooled token each."""
    shapes: list[tuple[int, ...]] = []
    networks = [layer.mlp for layer in reward_model.model.base_model.layers]
    hooks = [
        network.gate_proj.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[:2])))
        for network in (networks[0], networks[-1])
    ]
    ClassifierReward(reward_model, 100_000).score(items())
    for hook in hooks:
        hook.remove()
    first, last = shapes[-2:]
    assert first[0] == 12 and first[1] > 1 and last == (12, 1)


@pytest.mark.parametrize("with_eyes", [False, True])
def test_the_pad_token_is_the_texts_where_a_model_has_several_configurations(with_eyes: bool, tmp_path: Path) -> None:
    """Saved without one, Gemma 3 gets its tokenizer's; the pooling asks the text's configuration for it."""
    text = {**SHAPE, "pad_token_id": None}
    eyes = {**SHAPE, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = (
        Gemma3Config(text_config=text, vision_config=eyes, num_labels=1, pad_token_id=None)
        if with_eyes
        else Gemma3TextConfig(**text)
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(pocket.weights("chat")).save_pretrained(tmp_path)
    classifier = load_classifier(str(tmp_path), device="cpu")
    assert classifier.model.config.get_text_config().pad_token_id == 0
    for batch_tokens in (150, 100_000):
        scores = ClassifierReward(classifier, batch_tokens).score(items())
        assert len(set(scores)) > 3
        assert scores == pytest.approx(one_at_a_time(classifier, items()), abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
@pytest.mark.parametrize("kind", ["decoder", "encoder", "absolute"])
def test_scores_are_those_of_each_text_alone(
    kind: str, batch_tokens: int, reward_model: Classifier, judge_model: Classifier
) -> None:
    classifiers = {"decoder": reward_model, "encoder": judge_model, "absolute": absolute_positions()}
    classifier = classifiers[kind]
    scores = ClassifierReward(classifier, batch_tokens).score(items())
    assert scores == pytest.approx(one_at_a_time(classifier, items()), abs=1e-5)


def test_a_lone_text_and_none_at_all(reward_model: Classifier) -> None:
    reward = ClassifierReward(reward_model, 1000)
    assert reward.score(items()[:1]) == pytest.approx(one_at_a_time(reward_model, items()[:1]), abs=1e-5)
    assert reward.score([]) == []


def test_equal_texts_are_scored_once_and_progress_counts_all(judge_model: Classifier) -> None:
    rows: list[int] = []
    told: list[int] = []
    hook = judge_model.model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ClassifierReward(judge_model, 200).score(items(), progress=told.append)
    hook.remove()
    assert sum(rows) == 4 * len(QUESTIONS)
    assert sum(told) == 5 * len(QUESTIONS)


def test_a_prompt_is_read_once_for_all_its_responses(reward_model: Classifier) -> None:
    """3 questions with 4 distinct responses each: one pass over 3 beginnings, one over 12 ends."""
    rows: list[int] = []
    hook = reward_model.model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ClassifierReward(reward_model, 100_000).score(items())
    hook.remove()
    assert rows == [3, 12]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_too_long_a_prompt_loses_its_beginning_and_says_so_once(
    kind: str, reward_model: Classifier, judge_model: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    classifier = replace({"decoder": reward_model, "encoder": judge_model}[kind], context=40)
    reward = ClassifierReward(classifier, 1000)
    end = "How do I clean my shoes?"
    long = [
        Judged((Message("user", "never mind " * 60 + beginning + " " + end),), "Rinse them.")
        for beginning in ("", "Well. " * 60)
    ]
    with caplog.at_level(logging.WARNING):
        first = reward.score(long)
        again = reward.score(long)
    assert first == again
    assert first[0] != first[1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{classifier.name}: 2 of 2 conversations exceed its context of 40 tokens; their beginning is cut"
    ]
    changed = [replace(long[0], response="Rub in the dirt."), long[1]]
    assert reward.score(changed)[0] != first[0]


def test_a_response_longer_than_the_context_is_still_scored(judge_model: Classifier) -> None:
    reward = ClassifierReward(replace(judge_model, context=20), 1000)
    [score] = reward.score([Judged((Message("user", "hi"),), "rinse it well " * 40)])
    assert score == score


def test_a_score_that_is_not_a_number_is_an_error(reward_model: Classifier) -> None:
    broken = load_classifier("pocket:reward-safety", device="cpu")
    broken.model.score.weight.data.fill_(float("inf"))
    with pytest.raises(RewardError, match="reward-safety: got the score nan for the response .*allowed are finite"):
        ClassifierReward(broken, 1000).score(items())


def test_a_block_builds_the_reward() -> None:
    spec = RewardConfig(model="pocket:reward-safety")
    reward = build(spec, reward_options(spec), attribute="safety", dtype="float32", device="cpu", batch_tokens=1000)
    assert len(reward.score(items())) == len(items())
