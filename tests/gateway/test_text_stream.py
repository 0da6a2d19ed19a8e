"""Pieces of text add up to what the tokenizer makes of all tokens, in whole characters, up to the first stop text."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_models import TOKENIZER
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rheostat.gateway.text_stream import Detokeniser, StopTexts, TextStream


def llama_like() -> PreTrainedTokenizerBase:
    """Words after ▁, bytes for what it lacks, a first space that is dropped, as Llama 2 and Gemma have it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁▁", "é", "."]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    backend.add_special_tokens([AddedToken(each, special=True) for each in ("<s>", "</s>")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def bert_like() -> PreTrainedTokenizerBase:
    pieces = ["[UNK]", "[PAD]", "un", "##able", "##s", "it", ".", "'", "s", "do", "n't"]
    backend = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


LIGHT = settings(max_examples=80, deadline=None)
TOKENIZERS = {"byte-level": TOKENIZER, "llama": llama_like(), "bert": bert_like()}
DETOKENISERS = {name: Detokeniser(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def streamed(detokeniser: Detokeniser, ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    stream = TextStream(detokeniser, stop)
    pieces = [stream.add(each) for each in ids]
    return [*pieces, stream.end()]


def cut(text: str, stop: Sequence[str]) -> str:
    """Character by character: up to the first stop text that is complete, the longest where two are at once."""
    for end in range(len(text) + 1):
        found = [each for each in stop if each and text[:end].endswith(each)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@pytest.mark.parametrize("name", TOKENIZERS)
@LIGHT
@given(data=st.data())
def test_pieces_add_up_to_the_text(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    # Few ids, most of them of bytes that are no character alone.
    ids = data.draw(st.lists(st.integers(0, min(len(tokenizer), 300) - 1), max_size=30))
    pieces = streamed(DETOKENISERS[name], ids)
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces) == whole
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


@pytest.mark.parametrize("name", ["byte-level", "llama"])
def test_a_character_comes_whole(name: str) -> None:
    """Tokens of a byte each: of four bytes the first three give nothing."""
    tokenizer = TOKENIZERS[name]
    text = "b🙂b"
    ids = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) >= 4
    [b] = tokenizer("b", add_special_tokens=False)["input_ids"][-1:]
    pieces = streamed(DETOKENISERS[name], [b, *ids, b])
    assert "".join(pieces).strip() == text
    assert [piece for piece in pieces if "🙂" in piece]
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_with_its_token() -> None:
    """Nothing is held back without need: each word of plain text is given when its last token is there."""
    ids = TOKENIZER("How do I clean my shoes?", add_special_tokens=False)["input_ids"]
    pieces = streamed(DETOKENISERS["byte-level"], ids)
    assert all(pieces[:-1])
    assert pieces[-1] == ""


SHORT = st.text("ab.", max_size=3)


@LIGHT
@given(st.lists(SHORT, max_size=12), st.lists(SHORT, max_size=3))
def test_a_text_is_cut_before_the_first_stop_text_however_it_is_split(pieces: list[str], stop: list[str]) -> None:
    cutter = StopTexts(stop)
    given_text = ""
    whole = "".join(pieces)
    expected = cut(whole, stop)
    for piece in pieces:
        given_text += cutter.add(piece)
        assert expected.startswith(given_text)
    given_text += cutter.end()
    assert given_text == expected
    assert cutter.is_met == any(each in whole for each in stop if each)


def test_no_more_is_held_back_than_may_begin_a_stop_text() -> None:
    cutter = StopTexts(["END", "\n\n"])
    assert [cutter.add(each) for each in ("one\n", "two E", "N", "d EN")] == ["one", "\ntwo ", "", "ENd "]
    assert cutter.add("D and more") == ""
    assert cutter.is_met
    assert cutter.add("after") == ""
    assert cutter.end() == ""


@LIGHT
@given(st.data())
def test_a_stop_text_may_be_split_over_tokens(data: st.DataObject) -> None:
    text = "1. Dust the window frames. 2. Mix warm water with vinegar."
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    whole = TOKENIZER.decode(ids)
    first = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[first : data.draw(st.integers(first + 1, len(whole)))]
    assert "".join(streamed(DETOKENISERS["byte-level"], ids, [stop])) == cut(whole, [stop])
