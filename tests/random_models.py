"""Random models of several architectures, what they are asked, and what transformers itself generates, for tests."""

from collections.abc import Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitNetConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from rheostat import pocket
from rheostat.control import ControlFormat
from rheostat.engines.transformers import TransformersEngine
from rheostat.model_files import quiet
from rheostat.models import Policy
from rheostat.plugins import Completion, GenerationRequest, Sampling, attribute
from rheostat.records import Message

FORMAT = ControlFormat((attribute("helpfulness"), attribute("safety")))
TOKENIZER = AutoTokenizer.from_pretrained(pocket.weights("chat"))
CONTEXT = 128
GREEDY = Sampling(temperature=0, max_tokens=20)

SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHORT_WINDOW = 16
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "bitnet": BitNetConfig(**SHAPE),
    "gpt2": GPT2Config(vocab_size=2048, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT,
                       initializer_range=0.3, bos_token_id=1, eos_token_id=2),
    "sliding window in every layer": MistralConfig(**SHAPE, sliding_window=SHORT_WINDOW),
    "sliding window in some layers": Gemma3TextConfig(
        **SHAPE, head_dim=8, sliding_window=SHORT_WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "no positions to be told": MptConfig(vocab_size=2048, d_model=32, n_layers=2, n_heads=4, max_seq_len=CONTEXT),
}  # fmt: skip


def random_policy(name: str = "llama", *, end_ids: Sequence[int] = (2,), seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    with quiet():
        model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    model.generation_config.eos_token_id = None
    return Policy(model, TOKENIZER, name, CONTEXT, tuple(end_ids))


def request(text: str, control: dict[str, float] | None = None, samples: int = 1) -> GenerationRequest:
    return GenerationRequest((Message("user", text),), control, samples)


def varied_requests() -> list[GenerationRequest]:
    """Prompts of unlike lengths, each free and under three controls, one of them twice."""
    texts = ("hi", "How do I clean my shoes?", "I want to repair an old bike with a friend. What should I do first?")
    grid = FORMAT.grid()
    requests = [request(text, control) for text in texts for control in (None, grid[0], grid[7], grid[-1])]
    return [*requests, requests[5]]


def own_greedy(policy: Policy, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """What transformers generates, one prompt at a time, without an end."""
    engine = TransformersEngine(policy, FORMAT, 1)
    rows = []
    for each in requests:
        ids = torch.tensor([engine.encode(each)])
        with quiet(), torch.inference_mode():
            generated = policy.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=GREEDY.max_tokens,
                pad_token_id=0,
            )
        rows.append(generated[0, ids.shape[1] :].tolist())
    return rows


def cut_at(ids: Sequence[int], end_ids: Sequence[int]) -> Sequence[int]:
    """The ids up to the first end token, that one included."""
    ends = [place for place, each in enumerate(ids) if each in end_ids]
    return ids[: ends[0] + 1] if ends else ids


def as_completion(
    ids: Sequence[int], end_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase = TOKENIZER
) -> Completion:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(text, len(ids), "stop" if ids[-1] in end_ids else "length")
