"""Generation by a server that speaks OpenAI's chat API: vLLM, SGLang, llama.cpp, `transformers serve`, or a gateway.

The server serves the recipe's own `model`. Its turns are sent as the engine in process would encode them: no content
yields a special token, control text that anyone wrote is neutralised. Dials go along per request, in
`chat_template_kwargs`, for a model whose chat template takes them (one that `rheostat export` wrote).
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from rheostat.chat import encode_response, served_prompt
from rheostat.control import ControlFormat
from rheostat.endpoint import SEEDS, Answer, ChatRequest, Choice, Endpoint, EndpointOptions
from rheostat.plugins import Completion, Engine, GenerationRequest, Progress, Sampling
from rheostat.records import Control, Finish, Message
from rheostat.stage import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDS_POLICY = False

_ENDS: dict[str, Finish] = {"stop": "stop", "length": "length"}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenAIOptions(EndpointOptions):
    """The endpoint's, and how many samples of a prompt one request asks for (the API's `n`).

    More than one where the server honours it, as vLLM does. Of a server that takes no notice (`transformers serve`) the
    samples that are missing are asked for one by one.
    """

    samples_per_request: Annotated[int, Field(ge=1)] = 1


OPTIONS = OpenAIOptions


def build(
    model: str, control_format: ControlFormat | None, *, batch_tokens: int, options: OpenAIOptions
) -> Engine:
    """An engine on the server that serves `model`, whose tokenizer is read here; what is in flight is the server's.

    With a `control_format`, controls go along and forged ones in the conversation are neutralised.
    """
    from rheostat.models import load_tokenizer

    return OpenAIEngine(load_tokenizer(model), control_format, Endpoint(options), options.samples_per_request)


@dataclass(frozen=True)
class OpenAIEngine:
    """Generates by requests to a server."""

    tokenizer: "PreTrainedTokenizerBase"
    control_format: ControlFormat | None
    endpoint: Endpoint
    samples_per_request: int = 1

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """Per request its completions, in order.

        Every request to the server carries a seed of its own, derived from `seed` and its place, so that a server that
        keeps to seeds gives the same texts again. Raises `EndpointError`, and `InputError` for a conversation that the
        chat template refuses.
        """
        turns = [self.turns(request.messages) for request in requests]
        found: list[list[Completion]] = [[] for _ in requests]
        at_once, lap = self.samples_per_request, 0
        odd: Counter[str] = Counter()
        while asks := _asks([each.samples - len(have) for each, have in zip(requests, found, strict=True)], at_once):
            chats = [
                ChatRequest(
                    turns[ask.request],
                    sampling.temperature,
                    sampling.top_p,
                    sampling.max_tokens,
                    seed=derive_seed(seed, f"{lap}/{ask.request}/{ask.first}") % SEEDS,
                    choices=ask.choices,
                    extra_body=_dials(requests[ask.request].control),
                )
                for ask in asks
            ]
            answers = self.endpoint.chat(chats, progress=progress)
            for ask, answer in zip(asks, answers, strict=True):
                found[ask.request] += self._completions(answer, ask.choices, odd)
            at_once, lap = 1, lap + 1  # what is still missing, a server that ignores `n` gives one by one
        self._tell(odd, found, sampling)
        return found

    def turns(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """The turns of a conversation as they are sent; a control forged across two turns is neutralised too."""
        form = self.control_format
        neutralise = None if form is None else form.neutralise
        return served_prompt(self.tokenizer, messages, neutralise=neutralise).turns

    def _completions(self, answer: Answer, wanted: int, odd: Counter[str]) -> list[Completion]:
        counted = answer.completion_tokens if wanted == 1 and len(answer.choices) == 1 else None
        return [self._completion(choice, counted, odd) for choice in answer.choices[:wanted]]

    def _completion(self, choice: Choice, counted: int | None, odd: Counter[str]) -> Completion:
        """A choice as a completion; `counted` are its tokens by the server's count, else they are counted here."""
        finish = _ENDS.get(choice.finish or "", "stop")
        if choice.finish not in _ENDS:
            odd[f"ended by {choice.finish!r}, taken as an end"] += 1
        if not choice.text.strip():
            odd["empty"] += 1
        if counted is None:
            end_id = self.tokenizer.eos_token_id
            ids = encode_response(self.tokenizer, choice.text, end_id=0 if end_id is None else end_id)
            counted = len(ids) - (finish == "length")
        return Completion(choice.text, max(1, counted), finish)

    def _tell(self, odd: Counter[str], found: Sequence[Sequence[Completion]], sampling: Sampling) -> None:
        where = self.endpoint.options.base_url
        if odd:
            counts = ", ".join(f"{what} × {count}" for what, count in odd.most_common())
            _logger.warning("%s: of %d samples: %s", where, sum(map(len, found)), counts)
        pools = [{each.text for each in row} for row in found if len(row) > 1]
        if sampling.temperature > 0 and len(pools) > 1 and all(len(pool) == 1 for pool in pools):
            _logger.warning(
                "%s: all samples of a prompt are equal, for each of %d prompts: the server seems to decode greedily "
                "(transformers serve does where the model's generation_config.json lacks do_sample: true)",
                where,
                len(pools),
            )


@dataclass(frozen=True, slots=True)
class _Ask:
    """`choices` samples of a request, of those still missing from the one numbered `first` on."""

    request: int
    first: int
    choices: int


def _asks(missing: Sequence[int], at_once: int) -> list[_Ask]:
    return [
        _Ask(request, first, min(at_once, count - first))
        for request, count in enumerate(missing)
        for first in range(0, count, at_once)
    ]


def _dials(control: Control | None) -> dict[str, Any]:
    return {} if control is None else {"chat_template_kwargs": dict(control)}
