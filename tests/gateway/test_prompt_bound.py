"""What is refused before it is tokenised is too long when it is tokenised."""

import copy
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_models import TOKENIZER
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rheostat.chat import encode_prompt
from rheostat.control import ControlFormat
from rheostat.errors import PromptTooLong
from rheostat.gateway.prompt_bound import PromptBound
from rheostat.plugins import attribute
from rheostat.records import Message

FORMAT = ControlFormat((attribute("helpfulness"), attribute("safety")))
NFC, LOWER = normalizers.NFC(), normalizers.Lowercase()


def changed(**parts: Any) -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


def by_bytes() -> Any:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {"▁": 256, "a": 257, "b": 258, "ab": 259, "▁ab": 260}
    model = models.BPE(vocabulary, [("a", "b"), ("▁", "ab")], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TOKENIZER.chat_template)


def stripping() -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True)])
    return tokenizer


BOUNDED = {"byte level": TOKENIZER, "composing": changed(normalizer=NFC), "by bytes": by_bytes()}
UNKNOWN = {
    "lower case": changed(normalizer=LOWER),
    "spaces fall": changed(pre_tokenizer=pre_tokenizers.Split(Regex(" +"), "removed")),
    "bytes without an alphabet": changed(pre_tokenizer=pre_tokenizers.Digits()),
    "takes spaces in": stripping(),
}

PIECES = st.sampled_from(
    ["a", "ab", " ab", "[harmless=0]", "［ｓａｆｅ", "<|assistant|>", "e\u0301", "\u1100\u1161\u11a8",
     "\u03b1\u0313\u0300\u0345", "  ", "\n", "中", "😀",
     *sorted(filter(str.isascii, TOKENIZER.get_vocab()), key=len)[-8:]]
)  # fmt: skip
TEXTS = st.lists(st.tuples(PIECES | st.text(max_size=3), st.integers(1, 40)), min_size=1, max_size=6).map(
    lambda parts: "".join(piece * times for piece, times in parts)
)


@pytest.mark.parametrize("name", BOUNDED)
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), context=st.integers(2, 40))
def test_what_is_refused_early_is_too_long(name: str, texts: list[str], context: int) -> None:
    tokenizer = BOUNDED[name]
    turns = [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)]
    bound = PromptBound(tokenizer)
    try:
        bound.check(tokenizer, turns, context)
    except PromptTooLong:
        ids = encode_prompt(tokenizer, turns, control_text="[helpful=1]", neutralise=FORMAT.neutralise)
        assert len(ids) + 1 > context


@pytest.mark.parametrize("name", BOUNDED)
@settings(deadline=None, max_examples=60)
@given(text=TEXTS)
def test_a_text_has_no_fewer_tokens_than_is_said(name: str, text: str) -> None:
    found = len(BOUNDED[name](text, add_special_tokens=False)["input_ids"])
    assert PromptBound(BOUNDED[name]).tokens(text) <= found


def test_a_text_of_the_longest_token_alone_meets_the_bound() -> None:
    longest = max(TOKENIZER.get_vocab(), key=lambda token: (token.isalpha(), len(token)))
    length = max(map(len, TOKENIZER.get_vocab()))
    assert PromptBound(TOKENIZER).tokens("x" * length * 10) == 10 and len(longest) <= length
    assert PromptBound(BOUNDED["composing"]).tokens("x" * length * 40) == 10


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_characters_may_fall_nothing_is_refused_early(name: str) -> None:
    assert PromptBound(UNKNOWN[name]).tokens("x" * 10**6) == 0
    PromptBound(UNKNOWN[name]).check(UNKNOWN[name], [Message("user", "x" * 10**6)], 2)


def test_a_tokenizer_that_is_not_of_the_library_refuses_nothing_early() -> None:
    assert PromptBound(mock.Mock(spec=["encode"])).tokens("x" * 10**6) == 0


def test_the_message_says_what_is_known() -> None:
    with pytest.raises(PromptTooLong, match=r"at least \d{5} tokens, allowed are at most 511 \(the context is 512\)"):
        PromptBound(TOKENIZER).check(TOKENIZER, [Message("user", "[s" * 2**19)], 512)
    PromptBound(TOKENIZER).check(TOKENIZER, [Message("user", "[s" * 2**19)], None)
