"""Generation in process, by an own decode loop around any decoder-only Hugging Face model.

What makes it faster than `model.generate`: every distinct prompt is prefilled once for all its samples,
and its beginning once for all its controls; a row that has finished leaves at once and new prompts take
its place; keys and values live in one preallocated buffer; drawing a token takes one random number.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rheostat.chat import encode_prompt
from rheostat.control import ControlFormat
from rheostat.engines._beginnings import common_prefix
from rheostat.engines._mixture import MixedForward, Mixture, mix
from rheostat.engines._rows import Rows
from rheostat.engines._sampling import draw
from rheostat.engines._slots import Forward, NextLogits, Prefilled, Prompt, prefill
from rheostat.models import Policy
from rheostat.plugins import Completion, Engine, GenerationRequest, Progress, Sampling

NEEDS_POLICY = True

_COLUMN_STEP = 32
_REFILL_SHARE = 8


@dataclass(frozen=True, slots=True)
class TransformersOptions:
    """None: what bounds it is the recipe's `batch_tokens`."""


OPTIONS = TransformersOptions
_DEFAULTS = TransformersOptions()


def build(
    policy: Policy,
    control_format: ControlFormat | None,
    *,
    batch_tokens: int,
    options: TransformersOptions = _DEFAULTS,
) -> Engine:
    """An engine on a policy; at most `batch_tokens` tokens (rows × longest row) are in flight.

    With a `control_format`, controls are rendered and forged ones in the conversation neutralised.
    """
    return TransformersEngine(policy, control_format, batch_tokens)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token ids of a response, end token included; whether an end token ended it."""

    ids: list[int]
    is_complete: bool


@dataclass(frozen=True, slots=True)
class TransformersEngine:
    """Generates with a policy, or with a `mixture` of several models that share the policy's tokenizer and limits.

    Before a mixture controls are weights, not text, and the tokens in flight are shared by its models.
    """

    policy: Policy
    control_format: ControlFormat | None
    batch_tokens: int
    mixture: Mixture | None = None

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """Per request its completions, in order; the same requests and seed give the same texts.

        Raises `PromptTooLong` where a prompt leaves no room for a response.
        """
        sampled = self.sample(requests, sampling, seed=seed, progress=progress)
        texts = iter(
            self.policy.tokenizer.batch_decode(
                [response.ids for responses in sampled for response in responses],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        )
        return [
            [
                Completion(next(texts), len(response.ids), "stop" if response.is_complete else "length")
                for response in responses
            ]
            for responses in sampled
        ]

    def sample(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Sampled]]:
        """What `generate` decodes: per request the tokens of its responses, as they were drawn."""
        jobs = _jobs([self.encode(request) for request in requests], requests)
        if not jobs:
            return [[] for _ in requests]
        flight = _Flight(
            self.policy, sampling, seed, self.batch_tokens, jobs, progress, self._weighed(requests)
        )
        with torch.inference_mode():
            ended = flight.run()
        return [
            [ended[number, sample] for sample in range(request.samples)] for number, request in enumerate(requests)
        ]

    def encode(self, request: GenerationRequest) -> tuple[int, ...]:
        """The token ids of a request. Raises `PromptTooLong`."""
        format = self.control_format
        control = request.control if self.mixture is None else None
        assert format is not None or control is None, "a control needs a control format"
        ids = encode_prompt(
            self.policy.tokenizer,
            request.messages,
            control_text=format.render(control) if format and control is not None else "",
            neutralise=format.neutralise if format else None,
            context=self.policy.context,
        )
        return tuple(ids)

    def _weighed(self, requests: Sequence[GenerationRequest]) -> "_Weighed | None":
        """The mixture's models and their weights of each request."""
        if self.mixture is None:
            return None
        weights = []
        for request in requests:
            assert request.control is not None, "a mixture needs a control"
            weights.append(tuple(self.mixture.weigh(request.control)))
        return _Weighed(self.mixture, torch.tensor(weights, device=self.policy.device))


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A mixture, and the weights of its models for each request, `(requests, models)`."""

    mixture: Mixture
    weights: Tensor


@dataclass(frozen=True, slots=True)
class _Job:
    """A distinct prompt and the (request, sample) pairs that wait for a response to it."""

    prompt: Prompt
    targets: deque[tuple[int, int]]


def _jobs(encoded: Sequence[tuple[int, ...]], requests: Sequence[GenerationRequest]) -> deque[_Job]:
    """Distinct prompts, shortest first, those of one conversation side by side."""
    targets: dict[tuple[int, ...], deque[tuple[int, int]]] = {}
    families: dict[object, dict[tuple[int, ...], None]] = {}
    for number, (ids, request) in enumerate(zip(encoded, requests, strict=True)):
        targets.setdefault(ids, deque()).extend((number, sample) for sample in range(request.samples))
        families.setdefault(request.messages, {})[ids] = None
    shared: dict[tuple[int, ...], int] = {}
    for family in families.values():
        common = common_prefix(list(family)) if len(family) > 1 else 0
        shared.update((ids, min(common, len(ids) - 1)) for ids in family)
    order = sorted(targets, key=lambda ids: (shared[ids] or len(ids), ids))
    return deque(_Job(Prompt(ids, shared[ids]), targets[ids]) for ids in order if targets[ids])


class _Flight:
    """One call of `generate`: the rows in flight, those that wait, those that have ended."""

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        seed: int,
        batch_tokens: int,
        jobs: deque[_Job],
        progress: Progress | None,
        weighed: _Weighed | None,
    ) -> None:
        device = policy.device
        self.policy = policy
        self.sampling = sampling
        self.batch_tokens = batch_tokens
        self.weighed = weighed
        self.forward: NextLogits = Forward(policy.model)
        if weighed is not None:
            self.forward = MixedForward(weighed.mixture.models)
            self.batch_tokens = max(1, batch_tokens // len(weighed.mixture.models))
        self.jobs = jobs
        self.progress = progress
        self.generator = torch.Generator(device).manual_seed(seed)
        self.end_ids = torch.tensor(policy.end_ids, device=device)
        self.ready: deque[tuple[Prefilled, deque[tuple[int, int]]]] = deque()
        self.ended: dict[tuple[int, int], Sampled] = {}
        whole = torch.empty(0, dtype=torch.long, device=device)
        tokens = torch.empty(0, sampling.max_tokens, dtype=torch.long, device=device)
        self.rows: Rows[tuple[int, int]] = Rows(device, {"tokens": tokens, "counts": whole, "requests": whole})

    def run(self) -> dict[tuple[int, int], Sampled]:
        """All responses by (request, sample)."""
        while self.jobs or self.ready or self.rows:
            if (self.jobs or self.ready) and self._refill():
                self._retire()
            if self.rows:
                self._decode()
                self._retire()
        self.rows.free()
        return self.ended

    def _decode(self) -> None:
        used = len(self.rows)
        drawn = self._draw(self.rows.logits(self.forward), 0, used)
        counts = self.rows.states["counts"]
        self.rows.states["tokens"][:used].scatter_(1, counts[:used, None], drawn[:, None])
        self.rows.advance(drawn)
        counts[:used] += 1

    def _refill(self) -> bool:
        """Puts waiting prompts into free rows, once enough are free to be worth a prefill."""
        length = self.ready[0][0].length if self.ready else len(self.jobs[0].prompt.ids)
        cache = self.rows.cache
        columns = max(cache.columns, self._columns(length))
        rows = max(1, self.batch_tokens // columns)
        free = rows - len(self.rows)
        if free < max(1, rows // _REFILL_SHARE):
            return False
        if not self.ready:
            self._prefill(free)
        needed = min(rows, len(self.rows) + self._waiting())
        if cache.columns < columns or cache.rows < needed:
            self.rows.reserve(self.ready[0][0].cache, needed, columns)
        while free > 0 and self.ready:
            prompt, targets = self.ready[0]
            if self._columns(prompt.length) > columns:
                break
            count = min(free, len(targets))
            self._admit(prompt, [targets.popleft() for _ in range(count)])
            free -= count
            if not targets:
                self.ready.popleft()
        return True

    def _waiting(self) -> int:
        """Responses that have no row yet: a buffer for more rows than that would be cleared in vain."""
        prefilled = sum(len(targets) for _, targets in self.ready)
        return prefilled + sum(len(job.targets) for job in self.jobs)

    def _prefill(self, free: int) -> None:
        batch: list[_Job] = []
        waiting = 0
        while self.jobs and waiting < free:
            longest = max(len(job.prompt.ids) for job in [*batch, self.jobs[0]])
            if batch and (len(batch) + 1) * longest > self.batch_tokens:
                break
            batch.append(self.jobs.popleft())
            waiting += len(batch[-1].targets)
        pad_id = self.policy.tokenizer.pad_token_id
        prompts = prefill(self.forward, [job.prompt for job in batch], pad_id)
        self.ready.extend((prompt, job.targets) for prompt, job in zip(prompts, batch, strict=True))

    def _admit(self, prompt: Prefilled, targets: Sequence[tuple[int, int]]) -> None:
        start, stop = self.rows.join(prompt, targets, self._limit(prompt.length))
        states = self.rows.states
        numbers = [number for number, _ in targets]
        states["requests"][start:stop] = torch.tensor(numbers, device=self.rows.device)
        drawn = self._draw(prompt.logits.expand(len(targets), *prompt.logits.shape), start, stop)
        states["tokens"][start:stop, 0] = drawn
        states["counts"][start:stop] = 1
        self.rows.last[start:stop] = drawn

    def _draw(self, logits: Tensor, start: int, stop: int) -> Tensor:
        """The next tokens of rows `start` to `stop`, `(rows,)`."""
        if self.weighed is not None:
            logits = mix(logits, self.weighed.weights[self.rows.states["requests"][start:stop]])
        return draw(logits, self.sampling.temperature, self.sampling.top_p, self.generator)

    def _retire(self) -> None:
        """Takes finished rows out."""
        rows = self.rows
        is_complete = torch.isin(rows.last[: len(rows)], self.end_ids).tolist()
        finished = [
            place for place, row in enumerate(rows.rows) if is_complete[place] or row.deadline <= rows.step
        ]
        if not finished:
            return
        responses = rows.states["tokens"][finished].tolist()
        for place, tokens in zip(finished, responses, strict=True):
            row = rows.rows[place]
            self.ended[row.served] = Sampled(tokens[: rows.step - row.born + 1], is_complete[place])
        rows.leave(finished)
        if self.progress is not None:
            self.progress(len(finished))

    def _limit(self, prompt_length: int) -> int:
        return min(self.sampling.max_tokens, self.policy.context - prompt_length)

    def _columns(self, prompt_length: int) -> int:
        """Columns that a prompt and its longest response take, in steps, so that the buffer seldom grows."""
        needed = prompt_length + self._limit(prompt_length)
        return -(-needed // _COLUMN_STEP) * _COLUMN_STEP
