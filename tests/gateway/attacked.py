"""Gateways under attack: one with the model in its process, one before a server; what their models got, and a tally."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.gateway.attacks import FLOORS, Attempt
from tests.gateway.raw_client import Answered, answered
from tests.gateway.received import Prompt, Reader
from tests.gateway.served import Served, served
from tests.openai_double import Body, Reply, says, serving
from tests.random_models import FORMAT, SHAPE
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from rheostat import pocket
from rheostat.card import CARD, card_values
from rheostat.control import ControlFormat
from rheostat.control_template import dialled_template
from rheostat.dialled import DialledModel
from rheostat.engines.transformers import TransformersEngine
from rheostat.gateway.admission import Admission
from rheostat.gateway.backend import Backend
from rheostat.gateway.connection import ConnectionLimits
from rheostat.gateway.guard import Guard
from rheostat.gateway.inprocess import in_process
from rheostat.gateway.limits import RateLimits
from rheostat.gateway.policy_source import PolicySource
from rheostat.gateway.service import Service
from rheostat.gateway.telemetry import Telemetry
from rheostat.gateway.upstream import Upstream
from rheostat.gateway.upstream_client import UpstreamOptions
from rheostat.models import Policy
from rheostat.plugins import Judged, Progress

AT_ONCE = 16
CONTEXT = 512
LIMITS = ConnectionLimits(request_s=1.0)
"""A request that never becomes whole is given up after a second."""

UPSTREAM_FIELDS = {
    "model", "messages", "temperature", "top_p", "max_tokens", "stream", "stream_options", "stop", "n", "seed",
    "chat_template_kwargs",
}  # fmt: skip
UPSTREAM_HEADERS = {"host", "accept", "accept-encoding", "content-type", "content-length", "user-agent"}

_GRANTED = re.compile(rb'"(\w+)":\{"requested":[^{}]*?"granted":([0-9.]+)')


class FullScores:
    """A scorer to whom every answer is as good as can be."""

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[dict[str, float]]:
        """Full scores."""
        return [{"safety": 1.0, "helpfulness": 1.0} for _ in items]


@dataclass
class House:
    """A gateway and how to read what its model gets; `prompts` gives what it has got, but for so many at the front."""

    served: Served
    reader: Reader
    prompts: Callable[[int], list[Prompt]]
    _seen: int = 0

    def new_prompts(self) -> list[Prompt]:
        """What the model has got since the last call."""
        found = self.prompts(self._seen)
        self._seen += len(found)
        return found

    @property
    def source(self) -> PolicySource:
        """Where its policy comes from."""
        callers = self.served.service.callers
        assert isinstance(callers, PolicySource)
        return callers


def service_of(backend: Backend, policy: Path, *, poll_s: float) -> Service:
    """The service of a backend under a policy file, with a guard."""
    formats = {name: model.control_format for name, model in backend.models.items()}
    return Service(
        backend=backend,
        callers=PolicySource(policy, formats, poll_s=poll_s),
        limits=RateLimits(),
        admission=Admission(in_work=AT_ONCE, queue=4 * AT_ONCE),
        telemetry=Telemetry(),
        guard=Guard(backend, FullScores()),
    )


def small_model(control_format: ControlFormat = FORMAT, template: str | None = None) -> DialledModel:
    """The packaged model's tokenizer, chat template and context around random weights: what counts is what they get."""
    torch.manual_seed(0)
    shape = {**SHAPE, "num_hidden_layers": 1, "max_position_embeddings": CONTEXT}
    network = AutoModelForCausalLM.from_config(LlamaConfig(**shape)).eval()
    tokenizer = AutoTokenizer.from_pretrained(pocket.weights("chat"), padding_side="left")
    tokenizer.chat_template = template or tokenizer.chat_template
    policy = Policy(network, tokenizer, "small", CONTEXT, (2,))
    return DialledModel(TransformersEngine(policy, control_format, 8192), control_format)


@contextmanager
def in_this_process(
    model: DialledModel, policy: Path, *, poll_s: float = 1.0, has_own_markup: bool = True
) -> Iterator[House]:
    """A gateway whose model runs here, under two names; its prompts are the ids that the model was given."""
    received: list[Sequence[int]] = []
    backend = in_process({"pocket": model, "secret": model}, received=received.append)
    assert isinstance(model.engine, TransformersEngine)
    reader = Reader(model.engine.policy.tokenizer, FORMAT, has_own_markup=has_own_markup)
    with served(service_of(backend, policy, poll_s=poll_s), connection_limits=LIMITS) as gateway:
        yield House(gateway, reader, lambda start: [reader.of_ids(ids) for ids in received[start:]])


@contextmanager
def before_a_server(folder: Path, policy: Path, *, has_own_markup: bool = True) -> Iterator[House]:
    """A gateway before a server that obeys all it is sent; its prompts are what a template without floors renders."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reader = Reader(tokenizer, FORMAT, has_own_markup=has_own_markup)
    with serving(_answer) as double:
        upstream = Upstream(folder, UpstreamOptions(double.url, model="any"), name="pocket")

        def prompts(start: int) -> list[Prompt]:
            received = double.received[start:]
            for each in received:
                assert set(each.headers) <= UPSTREAM_HEADERS, each.headers
                assert set(each.body) <= UPSTREAM_FIELDS, each.body
            return [reader.of_text(rendered(tokenizer, body)) for body in (each.body for each in received)]

        with served(service_of(upstream, policy, poll_s=1.0), connection_limits=LIMITS) as gateway:
            yield House(gateway, reader, prompts)


def rendered(tokenizer: Any, body: Body) -> str:
    """The prompt that a server makes of a request, which takes a caller's word for how (as vLLM's API does)."""
    options = {"add_generation_prompt": True, "continue_final_message": False, "chat_template": None}
    own = {name: body.get(name, default) for name, default in options.items()}
    text: str = tokenizer.apply_chat_template(
        body["messages"], tokenize=False, **{**own, **(body.get("chat_template_kwargs") or {})}
    )
    return text


def _answer(body: Body, before: int) -> Reply:
    texts = ["Boil it."] * int(body.get("n", 1))
    if not body.get("stream"):
        return says(*texts)
    choices = [
        {"index": place, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for place, text in enumerate(texts)
    ]
    chunk = {"id": "x", "object": "chat.completion.chunk", "choices": choices}
    return Reply(
        f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(),
        headers={"Content-Type": "text/event-stream"},
    )


def exported(folder: Path, template: str | None = None) -> Path:
    """What `rheostat export` writes that a gateway and a server's tokenizer read; there is no floor in it."""
    engine = small_model(template=template).engine
    assert isinstance(engine, TransformersEngine)
    engine.policy.model.save_pretrained(folder)
    engine.policy.tokenizer.save_pretrained(folder)
    template = engine.policy.tokenizer.chat_template
    assert isinstance(template, str), template
    (folder / "chat_template.jinja").write_text(dialled_template(template, FORMAT), encoding="utf-8")
    (folder / CARD).write_text(
        json.dumps(card_values(FORMAT, template, floors={}, trained=FORMAT)), encoding="utf-8"
    )
    return folder


@dataclass(slots=True)
class Tally:
    """What became of attempts: how many, the statuses and the prompts by channel, and every breach."""

    made: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    raised: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[int | None]] = field(default_factory=lambda: defaultdict(Counter))
    breaches: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A line a channel."""
        lines = [f"{'channel':26} {'made':>5} {'reached':>8} {'at a floor':>11}  refused, by status"]
        for channel, made in [*self.made.items(), ("all", self.made.total())]:
            of = Counter[int | None]()
            for name, counts in self.statuses.items():
                of += counts if channel in (name, "all") else Counter()
            refused = ", ".join(
                f"{status}: {count}" for status, count in sorted(of.items(), key=str) if status != 200
            )
            reached = self.reached.total() if channel == "all" else self.reached[channel]
            raised = self.raised.total() if channel == "all" else self.raised[channel]
            lines.append(f"{channel:26} {made:5} {reached:8} {raised:11}  {refused}")
        return "\n".join(lines)


def attack(house: House, attempts: Sequence[Attempt]) -> Tally:
    """Makes all attempts, those of one key and channel at once, and judges what the model got of them."""
    tally = Tally()
    groups: dict[tuple[str, str | None], list[Attempt]] = defaultdict(list)
    for each in attempts:
        groups[each.channel, each.key].append(each)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (channel, key), group in groups.items():
            house.new_prompts()
            answers = list(pool.map(lambda each: answered(house.served.port, each.raw), group))
            prompts = house.new_prompts()
            tally.made[channel] += len(group)
            tally.reached[channel] += len(prompts)
            for each, answer in zip(group, answers, strict=True):
                tally.statuses[channel][_last(answer)] += 1
                if fault := _fault(answer):
                    tally.odd.append(f"{channel}: {each.label}: {fault}: {answer.data[:300]!r}")
            if key is None:
                tally.breaches += [f"{channel}: answered without a key: {each.text!r}" for each in prompts]
                continue
            faults = [(each, house.reader.breach(each, FLOORS[key])) for each in prompts]
            tally.breaches += [f"{channel}: {fault}" for _, fault in faults if fault is not None]
            tally.raised[channel] += sum(_is_at_floor(house.reader, each, FLOORS[key]) for each in prompts)
            tally.odd += _untold(channel, house.reader, prompts, answers)
    return tally


def _is_at_floor(reader: Reader, prompt: Prompt, floors: Mapping[str, float]) -> bool:
    found = reader.control(prompt)
    return found is not None and any(found[0][dial] == floor for dial, floor in floors.items())


def _last(answer: Answered) -> int | None:
    return answer.statuses[-1] if answer.statuses else None


def _fault(answer: Answered) -> str | None:
    """What is wrong with an answer: no word at all, a failure of ours, or an error in another shape than OpenAI's."""
    last = _last(answer)
    if last is None:
        return "no answer"
    if last >= 500:
        return "a failure"
    is_plain = len(answer.statuses) == 1 and last >= 400 and bool(answer.body)
    return "an error in a shape of its own" if is_plain and not answer.is_openais_error else None


def _untold(
    channel: str, reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answered]
) -> list[str]:
    """Whether what the answers say was granted is, all in all, what the model got."""
    told = Counter(_GRANTED.findall(b"\n".join(each.data for each in answers)))
    got = Counter[tuple[bytes, bytes]]()
    for prompt in prompts:
        found = reader.control(prompt)
        for dial, level in (found[0] if found else {}).items():
            got[dial.encode(), f"{level}".encode()] += 1
    return [] if told == got else [f"{channel}: told {told}, but got {got}"]
