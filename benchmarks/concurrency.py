"""What answering together is worth: clients with a setting of the dials each, at once, against one after another.

    python benchmarks/concurrency.py --json benchmarks/results/concurrency.json

Contestants, the same asks and as many tokens each: the gateway's backend in process, all clients at once; the same
backend, a client after another; `DialledModel.respond`, a client after another. No token ends an answer. Rounds
alternate; tokens a second are medians, ratios the medians of each round's. Each is told for the wall clock and for
this process' own seconds, which a machine that is busy with other work does not stretch. Seconds to the first text of
a client are those from its own ask.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import machine
from rheostat.dialled import DialledModel, load
from rheostat.engines.transformers import TransformersEngine
from rheostat.gateway.backend import Ask, Piece, Usage
from rheostat.gateway.inprocess import InProcess, in_process
from rheostat.pocket import prompts as pocket_prompts
from rheostat.records import Message

NAME = "model"
TOGETHER, IN_TURN, RESPOND = "in process, at once", "in process, in turn", "respond, in turn"


@dataclass(frozen=True)
class Taken:
    """Tokens, seconds by each clock, and seconds to the first text of each client (none where nothing streams)."""

    tokens: int
    wall: float
    processor: float
    first_text: list[float]


def endless(model: DialledModel) -> DialledModel:
    """The model, of which no token ends an answer."""
    engine = model.engine
    assert isinstance(engine, TransformersEngine)
    return replace(model, engine=replace(engine, policy=replace(engine.policy, end_ids=(-1,))))


def asks(model: DialledModel, arguments: argparse.Namespace) -> list[Ask]:
    """A prompt and a setting for each client, all settings unlike where the grid has as many."""
    grid = model.control_format.grid()
    texts = [prompt.text for prompt in pocket_prompts("train")[: arguments.clients]]
    return [
        Ask(
            NAME,
            (Message("user", text),),
            grid[(7 * place) % len(grid)],
            arguments.temperature,
            1.0,
            arguments.max_tokens,
            place,
        )
        for place, text in enumerate(texts)
    ]


async def answered(backend: InProcess, ask: Ask, firsts: list[float]) -> int:
    """Tokens of an answer."""
    started, tokens, has_text = time.perf_counter(), 0, False
    async for event in backend.answer(ask):
        if isinstance(event, Usage):
            tokens = event.completion_tokens
        elif isinstance(event, Piece) and event.text and not has_text:
            has_text = True
            firsts.append(time.perf_counter() - started)
    return tokens


async def timed(work: Callable[[list[float]], Awaitable[int]]) -> Taken:
    """What a piece of work takes."""
    firsts: list[float] = []
    wall, processor = time.perf_counter(), time.process_time()
    tokens = await work(firsts)
    return Taken(tokens, time.perf_counter() - wall, time.process_time() - processor, firsts)


async def rounds(model: DialledModel, arguments: argparse.Namespace) -> dict[str, list[Taken]]:
    """Every contestant, round by round."""
    wanted = asks(model, arguments)
    backend = in_process({NAME: model})
    await backend.start()

    async def together(firsts: list[float]) -> int:
        return sum(await asyncio.gather(*(answered(backend, each, firsts) for each in wanted)))

    async def in_turn(firsts: list[float]) -> int:
        return sum([await answered(backend, each, firsts) for each in wanted])

    async def respond(firsts: list[float]) -> int:
        for each in wanted:
            model.respond(
                each.messages,
                temperature=each.temperature,
                max_tokens=each.max_tokens,
                seed=each.seed or 0,
                **each.control,
            )
        return len(wanted) * arguments.max_tokens

    contestants = {TOGETHER: together, IN_TURN: in_turn, RESPOND: respond}
    found: dict[str, list[Taken]] = {name: [] for name in contestants}
    await together([])
    try:
        for _ in range(arguments.rounds):
            for name, work in contestants.items():
                taken = await timed(work)
                assert taken.tokens == len(wanted) * arguments.max_tokens, (name, taken.tokens)
                found[name].append(taken)
    finally:
        await backend.stop()
    return found


def figures_of(found: dict[str, list[Taken]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of each contestant, and how many times the throughput of the others it is to answer at once."""

    def ratio(name: str, seconds: Callable[[Taken], float]) -> float:
        pairs = zip(found[name], found[TOGETHER], strict=True)
        return statistics.median(seconds(other) / seconds(ours) for other, ours in pairs)

    return {
        "clients": arguments.clients,
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "rounds": arguments.rounds,
        "contestants": {
            name: {
                "tokens_per_second": statistics.median(each.tokens / each.wall for each in taken),
                "tokens_per_processor_second": statistics.median(each.tokens / each.processor for each in taken),
                "seconds_to_first_text": median(first for each in taken for first in each.first_text),
                "at_once_is_times": ratio(name, lambda each: each.wall),
                "at_once_is_times_by_processor": ratio(name, lambda each: each.processor),
            }
            for name, taken in found.items()
        },
        "machine": machine.describe(),
    }


def median(values: Any) -> float | None:
    """None where there is none."""
    held: Sequence[float] = list(values)
    return statistics.median(held) if held else None


def main() -> None:
    """Measures, prints a table, and writes JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a run or an exported model; else the packaged pocket model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = endless(load(arguments.model))
    figures = figures_of(asyncio.run(rounds(model, arguments)), arguments)
    print(f"{arguments.clients} clients; {'':13}tokens/s   at once is   by processor   seconds to first text")
    for name, each in figures["contestants"].items():
        first = each["seconds_to_first_text"]
        times, by_processor = each["at_once_is_times"], each["at_once_is_times_by_processor"]
        told = "-" if first is None else f"{first:.3f}"
        print(f"{name:24}{each['tokens_per_second']:10.0f}{times:12.2f}x{by_processor:14.2f}x{told:>24}")
    machine.write(arguments.json, figures)


if __name__ == "__main__":
    main()
