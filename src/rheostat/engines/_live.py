"""A decode loop that requests join and leave while it runs, each with its own sampling and random numbers.

Greedy answers are those of `TransformersEngine`, and a sample's tokens depend on its request's seed and its own number
alone, whoever else is in the batch: both up to the rounding of sums that are taken in another order.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from rheostat.engines._beginnings import with_beginnings
from rheostat.engines._rows import Rows
from rheostat.engines._sampling import RowSampling, draw_rows
from rheostat.engines._slots import Forward, Prefilled, prefill
from rheostat.errors import ModelError
from rheostat.model_files import first_line
from rheostat.models import Policy
from rheostat.plugins import Sampling
from rheostat.records import Finish

_logger = logging.getLogger(__name__)
_COLUMN_STEP = 64
_HEADROOM = 32
_FAULT_HINT = "ask again; if the device is out of memory, lower batch_tokens"
_FAULTS = (ModelError, RuntimeError, MemoryError)  # a device that is out of memory raises a RuntimeError

Received = Callable[[Sequence[int]], None]


@dataclass(frozen=True, slots=True, eq=False)
class LiveRequest:
    """A prompt to answer `samples` times; `ids` leave room for a token of an answer. Two alike are two requests."""

    ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """The next token of a request's answer `sample`; with the last one, why the answer ended."""

    request: LiveRequest
    sample: int
    token: int
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class Failed:
    """All of a request has ended, by a fault of the model."""

    request: LiveRequest
    error: ModelError


@dataclass(slots=True)
class _Answer:
    """One sample of a request: its random numbers, and its tokens, by which it goes on if it had to give way."""

    request: LiveRequest
    sample: int
    random: random.Random
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.request.ids) + len(self.tokens)

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.request.ids, *self.tokens) if self.tokens else self.request.ids


class LiveLoop:
    """Answers requests by `step`, one token of each in flight at a time. Not for two threads at once.

    Rows × the longest row stay within `batch_tokens` (a single row may be longer): who comes later waits, and where
    rows have grown too long the youngest gives way and goes on later. `received` is told the prompt of each request
    when the model first gets it. Raises `ModelError` for a model that the engine cannot run.
    """

    def __init__(self, policy: Policy, batch_tokens: int, received: Received | None = None) -> None:
        self._policy = policy
        self._batch_tokens = batch_tokens
        self._received = received
        self._forward = Forward(policy.model)
        self._end_ids = frozenset(policy.end_ids)
        self._waiting: deque[_Answer] = deque()
        self._joining: list[_Answer] = []
        self._cancelled: set[tuple[LiveRequest, int]] = set()
        self._rows: Rows[_Answer] = Rows(policy.device, {})
        self._sampling: RowSampling | None = None
        self._held: dict[tuple[int, ...], Prefilled] = {}

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._rows or self._waiting or self._cancelled)

    @property
    def in_flight(self) -> int:
        """Rows that have a place."""
        return len(self._rows)

    def submit(self, request: LiveRequest) -> None:
        """Queues a request."""
        assert 0 < len(request.ids) < self._policy.context, (len(request.ids), self._policy.context)
        self._waiting.extend(
            _Answer(request, sample, random.Random(f"{request.seed} {sample}"))
            for sample in range(request.samples)
        )

    def cancel(self, request: LiveRequest, sample: int | None = None) -> None:
        """No further token of a request, or of one sample; its rows are free at the next step, if it has not ended."""
        samples = range(request.samples) if sample is None else (sample,)
        self._cancelled.update((request, each) for each in samples)

    def step(self) -> list[Drawn | Failed]:
        """Lets waiting requests in, and draws a token for every row."""
        events: list[Drawn | Failed] = []
        if self._cancelled:
            self._drop(lambda answer: (answer.request, answer.sample) in self._cancelled)
            self._cancelled.clear()
        with torch.inference_mode():
            try:
                if self._waiting:
                    self._fill(events)
                if self._rows:
                    self._decode(events)
            except _FAULTS as error:
                concerned = [*self._joining, *(row.served for row in self._rows.rows)]
                self._rows.free()
                self._held.clear()
                self._sampling = None
                self._fail({answer.request for answer in concerned}, error, events)
        if self.is_idle:
            self._rows.free()
            self._held.clear()
        return events

    def _fill(self, events: list[Drawn | Failed]) -> None:
        """Prefills those that wait, as far as there is room, each prompt once, and gives them rows."""
        self._take()
        by_ids: dict[tuple[int, ...], list[_Answer]] = {}
        for answer in self._joining:
            by_ids.setdefault(answer.ids, []).append(answer)
        prompts = dict(self._held)
        errors: dict[tuple[int, ...], Exception] = {}
        self._prefill([ids for ids in by_ids if ids not in prompts], prompts, errors)
        for ids, error in errors.items():
            self._fail({answer.request for answer in by_ids[ids]}, error, events)
        if self._joining:
            self._join(prompts, events)
        self._joining.clear()
        following = self._waiting[0].ids if self._waiting else ()
        self._held = {ids: prompt for ids, prompt in prompts.items() if ids == following}

    def _take(self) -> None:
        """Those that fit beside the rows in flight leave the queue, in the order in which they came."""
        columns = self._rows.longest
        while self._waiting:
            answer = self._waiting[0]
            columns = max(columns, answer.length)
            rows = len(self._rows) + len(self._joining) + 1
            if rows > 1 and rows * (columns + _HEADROOM) > self._batch_tokens:
                break
            self._joining.append(self._waiting.popleft())
            if self._received is not None and answer.sample == 0 and not answer.tokens:
                self._received(answer.request.ids)

    def _prefill(
        self,
        wanted: list[tuple[int, ...]],
        prompts: dict[tuple[int, ...], Prefilled],
        errors: dict[tuple[int, ...], Exception],
    ) -> None:
        """Adds to `prompts`, or `errors`; one by one where it fails together, since a fault may be one prompt's own."""
        if not wanted:
            return
        try:
            found = prefill(self._forward, with_beginnings(wanted), self._policy.tokenizer.pad_token_id)
        except _FAULTS as error:
            if len(wanted) == 1:
                errors[wanted[0]] = error
                return
        else:
            prompts.update(zip(wanted, found, strict=True))
            return
        for ids in wanted:
            self._prefill([ids], prompts, errors)

    def _join(self, prompts: dict[tuple[int, ...], Prefilled], events: list[Drawn | Failed]) -> None:
        rows, first = self._rows, len(self._rows)
        found = [prompts[answer.ids] for answer in self._joining]
        longest = max(rows.longest, *(prompt.length for prompt in found))
        self._make_room(found[0].cache, first + len(found), longest + 1)
        for answer, prompt in zip(self._joining, found, strict=True):
            room = self._policy.context - prompt.length
            rows.join(prompt, [answer], min(room, answer.request.sampling.max_tokens - len(answer.tokens)))
        self._joining.clear()
        joined = [row.served for row in rows.rows[first:]]
        logits = torch.stack([prompt.logits for prompt in found])
        drawn = self._draw(logits, joined, self._sampling_of(joined))
        rows.last[first : len(rows)] = drawn
        self._sampling = None
        self._note(first, drawn.tolist(), events)

    def _decode(self, events: list[Drawn | Failed]) -> None:
        rows = self._rows
        while len(rows) > 1 and len(rows) * (rows.longest + 1) > self._batch_tokens:
            self._give_way()
        self._make_room(rows.cache, len(rows), rows.longest + 1)
        logits = rows.logits(self._forward)
        answers = [row.served for row in rows.rows]
        if self._sampling is None:
            self._sampling = self._sampling_of(answers)
        drawn = self._draw(logits, answers, self._sampling)
        rows.advance(drawn)
        broken = frozenset(logits.isnan().any(-1).nonzero().flatten().tolist())
        for place in broken:
            rows.cache.forget(place)
        self._note(0, drawn.tolist(), events, broken)
        if broken:
            fault = ModelError("the model's logits are not numbers", hint="load it with dtype float32 or bfloat16")
            self._fail({answers[place].request for place in broken}, fault, events)

    def _note(
        self, first: int, drawn: Sequence[int], events: list[Drawn | Failed], broken: Collection[int] = ()
    ) -> None:
        """Tells of the tokens that rows from `first` on have got, the `broken` excepted; those that ended leave."""
        ended = []
        for place, token in enumerate(drawn, start=first):
            if place in broken:
                continue
            row = self._rows.rows[place]
            answer = row.served
            answer.tokens.append(token)
            finish: Finish | None = None
            if token in self._end_ids:
                finish = "stop"
            elif row.deadline <= self._rows.step:
                finish = "length"
            if finish is not None:
                ended.append(place)
            events.append(Drawn(answer.request, answer.sample, token, finish))
        self._leave(ended)

    def _give_way(self) -> None:
        """The youngest row waits again, before all others, with what it has so far."""
        rows = self._rows.rows
        place = max(range(len(rows)), key=lambda place: (rows[place].born, place))
        self._waiting.appendleft(rows[place].served)
        self._leave([place])

    def _make_room(self, like: Cache, rows: int, columns: int) -> None:
        """A buffer of at least `rows` × `columns`: of some more, so that it seldom grows, while that is in bounds."""
        cache = self._rows.cache
        if rows <= cache.rows and columns <= cache.columns:
            return
        columns = -(-columns // _COLUMN_STEP) * _COLUMN_STEP
        roomy = max(cache.rows, 1 << (rows - 1).bit_length()), max(cache.columns, columns)
        is_in_bounds = roomy[0] * roomy[1] <= self._batch_tokens
        self._rows.reserve(like, *(roomy if is_in_bounds else (rows, columns)))

    def _draw(self, logits: Tensor, answers: Sequence[_Answer], sampling: RowSampling) -> Tensor:
        # 24 bits are what float32 holds below 1: a number that rounds to 1 would be past every token.
        uniforms = [answer.random.getrandbits(24) * 2.0**-24 for answer in answers]
        return draw_rows(logits, sampling, torch.tensor(uniforms, device=logits.device)[:, None])

    def _sampling_of(self, answers: Sequence[_Answer]) -> RowSampling:
        each = [answer.request.sampling for answer in answers]
        return RowSampling.of([(one.temperature, one.top_p) for one in each], self._policy.device)

    def _leave(self, places: Sequence[int]) -> None:
        if places:
            self._rows.leave(places)
            self._sampling = None

    def _drop(self, is_gone: Callable[[_Answer], bool]) -> None:
        """Takes answers out, wherever they are."""
        self._waiting = deque(answer for answer in self._waiting if not is_gone(answer))
        self._joining = [answer for answer in self._joining if not is_gone(answer)]
        self._leave([place for place, row in enumerate(self._rows.rows) if is_gone(row.served)])

    def _fail(
        self, requests: Collection[LiveRequest], fault: Exception, events: list[Drawn | Failed]
    ) -> None:
        self._drop(lambda answer: answer.request in requests)
        error = fault
        if not isinstance(error, ModelError):
            _logger.error("the model failed", exc_info=fault)
            error = ModelError(f"the model failed: {first_line(fault)}", hint=_FAULT_HINT)
            error.__cause__ = fault
        events.extend(Failed(request, error) for request in requests)
