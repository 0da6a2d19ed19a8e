"""The pocket judges: scorers of another kind, for the generalization evaluation only.

Encoders (BERT) with a WordPiece vocabulary of their own, regressed on graded labels (the truth with noise) of
responses drawn flatly over all cells with other seeds: they share no weights, data, objective or architecture
with the reward models that label Rheostat's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from rheostat.pocket.comparisons import Attribute, Graded, draw_group
from rheostat.pocket.training import Budget, Fit, batches_by_length, fit, right_padded

VOCABULARY = 1280
POSITIONS = 256
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LABEL_NOISE = 0.15
"""Standard deviation of the noise on the graded labels."""
FLAT = 0.9
SPOILT = 0.15
LEARNING_RATE = 1.5e-3
BATCH_TOKENS = 3072
_CHUNK = 4096


def train_judge_tokenizer(seed: int, *, responses: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer that joins a prompt and a response as BERT does."""
    rng = Random(f"judge tokenizer {seed}")
    texts: list[str] = []
    for _ in range(responses):
        for item in draw_group(rng, size=1, flat=FLAT, spoilt=0.0):
            texts += [item.prompt, item.response]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIALS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side="right",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def judge_model(seed: int) -> BertForSequenceClassification:
    """The untrained judge: 2 layers of width 128, 0.5 M parameters, one score."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            num_labels=1,
            pad_token_id=0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            problem_type="regression",
        )
    )


def encode_judged(
    tokenizer: PreTrainedTokenizerFast, items: Sequence[Graded]
) -> list[tuple[list[int], list[int]]]:
    """(token ids, segment ids) of each prompt and response."""
    pairs = [(item.prompt, item.response) for item in items]
    return [
        (found.ids[:POSITIONS], found.type_ids[:POSITIONS])
        for found in tokenizer.backend_tokenizer.encode_batch(pairs)
    ]


def judgements(
    model: BertForSequenceClassification, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Tensor:
    """Raw scores ``(rows,)``; about the truth on its own scale."""
    ids = right_padded([row[0] for row in rows], fill=0)
    segments = right_padded([row[1] for row in rows], fill=0)
    found: Tensor = model(input_ids=ids, token_type_ids=segments, attention_mask=(ids != 0).long()).logits[
        :, 0
    ]
    return found


def train_judge(
    tokenizer: PreTrainedTokenizerFast, attribute: Attribute, seed: int, *, budget: Budget, console: Console
) -> tuple[BertForSequenceClassification, Fit]:
    """Train the judge of one attribute by squared error on noisy grades."""
    model = judge_model(seed)

    def loss(rows: list[tuple[list[int], list[int]]], wanted: Tensor) -> Tensor:
        return functional.mse_loss(judgements(model, rows), wanted)

    def losses() -> Iterator[tuple[float, Callable[[], Tensor]]]:
        rng = Random(f"judge {attribute} {seed}")
        generator = torch.Generator().manual_seed(seed)
        seen = 0
        chunk = min(_CHUNK, 1 + budget.judge_tokens // 40)
        while seen < budget.judge_tokens:
            items = [item for _ in range(chunk) for item in draw_group(rng, size=1, flat=FLAT, spoilt=SPOILT)]
            labels = [item.level(attribute) + rng.gauss(0.0, LABEL_NOISE) for item in items]
            rows = encode_judged(tokenizer, items)
            for places in batches_by_length(
                [len(row[0]) for row in rows], tokens=BATCH_TOKENS, generator=generator
            ):
                seen += sum(len(rows[place][0]) for place in places)
                chosen = [rows[place] for place in places]
                wanted = torch.tensor([labels[place] for place in places])
                yield min(1.0, seen / budget.judge_tokens), partial(loss, chosen, wanted)
                if seen >= budget.judge_tokens:
                    return

    return model, fit(
        model, losses(), learning_rate=LEARNING_RATE, label=f"judge {attribute}", console=console
    )
