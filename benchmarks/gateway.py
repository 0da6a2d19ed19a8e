"""The gateway under load: what it adds to a server behind it, and how much one core serves. LiteLLM's proxy beside it.

    python -m venv /tmp/litellm && /tmp/litellm/bin/pip install 'litellm[proxy]'
    python benchmarks/gateway.py --litellm /tmp/litellm/bin/litellm --json benchmarks/results/gateway.json
    python benchmarks/gateway.py --soak 120

All on loopback: clients in a closed loop (`load_clients`) and a stub of a server (`stub_upstream`) on one core; on
another `rheostat serve --upstream` with a policy file, a key, a floor and an audit log, and LiteLLM's proxy with one
worker, a key and the settings that its documentation recommends for production (virtual keys would need a database, so
its key is the master key). All are asked for the same, with dials in `chat_template_kwargs`; every answer is checked.
Rounds alternate: the upstream alone, the gateway, LiteLLM, again; figures are medians over rounds.

Three loads. **throughput**: the upstream answers at once, so that all time is the gateway's. **latency**: it takes
200 ms in the mean. Added latency is asked here and not above, because clients in a closed loop without latency are all
waiting at any time: their latency is clients ÷ throughput, whatever a single request costs. **stream**: as latency, in
20 pieces.

Added: of each request, the time from sending to its end less the time that the upstream had it, by the stub's clock
(the same machine's), less the median of that difference where clients ask the upstream alone.

`others` is the share of the measured core that other processes had: what was taken beside a busy machine is an upper
bound of latency and a lower one of throughput. Requests a processor second do not count the time that others had.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import gateway_soak
import machine
from rheostat import pocket
from rheostat.gateway.keys import hash_key, new_key
from served import Meter, Served, Server, cores, running

HERE = Path(__file__).resolve().parent
FLOORS = {"safety": 0.5}
CONTEXT = 8192
UPSTREAM, GATEWAY, RIVAL = "upstream", "rheostat", "litellm"


@dataclass(frozen=True)
class Kind:
    """A load: whether the upstream takes time for an answer, and whether its pieces are waited for."""

    name: str
    has_latency: bool
    stream: bool


KINDS = (Kind("throughput", False, False), Kind("latency", True, False), Kind("stream", True, True))


@dataclass(frozen=True)
class Cell:
    """What one server did under one load in one round; seconds by request."""

    requests: int
    wrong: int
    problems: Mapping[str, int]
    seconds: float
    total: Sequence[float]
    outside_first: Sequence[float]
    """From sending to the first text, less what the upstream took for it."""
    outside: Sequence[float]
    """From sending to the end, less what the upstream took."""
    processor_s: float
    others: float


def upstream(chunks: int) -> Server:
    """The stub."""
    command = [sys.executable, str(HERE / "stub_upstream.py"), "--port", "{port}", "--chunks", str(chunks)]
    return Server(UPSTREAM, command)


def exported(folder: Path) -> Path:
    """The packaged exported model with a context as served models have: the pocket model's own is filled by a question.

    So close to a context's end the gateway counts a prompt's tokens to bound the answer, far from it it need not.
    """
    made = folder / "exported"
    shutil.copytree(pocket.weights("tuned"), made)
    for name, key in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        (made / name).write_text(json.dumps({**json.loads((made / name).read_text()), key: CONTEXT}))
    return made


def gateway(behind: Served, folder: Path) -> Server:
    """The gateway, as in production: a policy with a key, a floor and an audit log."""
    key, policy = new_key(), folder / "policy.yaml"
    policy.write_text(
        f"version: 1\ntenants:\n  load:\n    floors: {json.dumps(FLOORS)}\n"
        f"    keys: [{{id: load, sha256: {hash_key(key)}}}]\n"
        f"audit: {{path: {json.dumps(str(folder / 'audit.jsonl'))}}}\n"
    )
    command = [
        sys.executable, "-m", "rheostat", "serve", "--upstream", f"http://127.0.0.1:{behind.port}/v1",
        "--run", str(exported(folder)), "--policy", str(policy), "--port", "{port}",
    ]  # fmt: skip
    return Server(GATEWAY, command, key, FLOORS, log=folder / "gateway.log")


def rival(litellm: Path, behind: Served, folder: Path) -> Server:
    """LiteLLM's proxy with one worker and its production settings; it fetches no price list and sends no telemetry."""
    key, config = "sk-benchmark", folder / "litellm.yaml"
    config.write_text(
        "model_list:\n- model_name: stub\n  litellm_params:\n    model: hosted_vllm/stub\n"
        f"    api_base: http://127.0.0.1:{behind.port}/v1\n    api_key: none\n"
        "litellm_settings: {request_timeout: 600, set_verbose: false, json_logs: true, telemetry: false}\n"
        f"general_settings: {{master_key: {key}, disable_error_logs: true}}\n"
    )
    command = [
        str(litellm), "--config", str(config), "--host", "127.0.0.1", "--port", "{port}", "--num_workers", "1"
    ]  # fmt: skip
    environment = {
        "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True",
        "DISABLE_ADMIN_UI": "True", "PYTHONPATH": "",
    }  # fmt: skip
    return Server(RIVAL, command, key, environment=environment, log=folder / "litellm.log")


def cell(
    served: Served, kind: Kind, behind: Served, arguments: argparse.Namespace, *, requests: int, prefix: str
) -> Cell:
    """So many requests of one kind to one server. Raises `RuntimeError` where the upstream had others than those."""
    latency_s = arguments.latency if kind.has_latency else 0.0
    behind.get(f"/stub/latency/{latency_s}")
    behind.get("/stub/spent")
    command = [
        sys.executable, str(HERE / "load_clients.py"), "--port", str(served.port), "--model", served.model,
        "--key", served.server.key, "--clients", str(arguments.clients), "--requests", str(requests),
        "--stagger", str(latency_s), "--prefix", prefix, "--floors", json.dumps(dict(served.server.floors)),
        "--chunks", str(arguments.chunks), *(["--stream"] if kind.stream else []),
    ]  # fmt: skip
    meter = Meter(served)
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    effort, found = meter.read(), json.loads(done.stdout)
    spent, times = behind.get("/stub/spent"), found.pop("times")
    if unlike := set(spent) ^ set(times):
        raise RuntimeError(f"{served.server.name}: {len(unlike)} requests reached one side alone: {found}")
    total, first, last = [], [], []
    for tag, (sent, text, end) in times.items():
        came, began, ended = spent[tag]
        total.append(end - sent)
        first.append(text - sent - (began - came))
        last.append(end - sent - (ended - came))
    return Cell(
        found["requests"], found["wrong"], found["problems"], found["seconds"], total, first, last,
        effort.processor_s, effort.others,
    )  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so great a share of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def milliseconds(cells: Sequence[Cell], bare: Sequence[Cell]) -> Iterator[tuple[str, float]]:
    """Medians over the rounds of one server, beside the same rounds of the upstream alone."""
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield f"total_{name}_ms", 1000 * statistics.median(percentile(each.total, share) for each in cells)
        for what, of in (("added", "outside"), ("added_first", "outside_first")):
            yield (
                f"{what}_{name}_ms",
                1000
                * statistics.median(
                    percentile(getattr(mine, of), share) - statistics.median(getattr(alone, of))
                    for mine, alone in zip(cells, bare, strict=True)
                ),
            )


def figures_of(cells: Sequence[Cell], bare: Sequence[Cell]) -> dict[str, Any]:
    """One server under one load, over all rounds."""
    return {
        "requests": sum(each.requests for each in cells),
        "wrong": sum(each.wrong for each in cells),
        "requests_a_second": statistics.median(each.requests / each.seconds for each in cells),
        "requests_a_processor_second": statistics.median(
            each.requests / max(each.processor_s, 0.01) for each in cells
        ),
        **dict(milliseconds(cells, bare)),
        "others_on_its_core": statistics.median(each.others for each in cells),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All servers under all loads."""
    asking, measured = cores()
    os.sched_setaffinity(0, {asking})
    found: dict[tuple[str, str], list[Cell]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        behind = stack.enter_context(running(upstream(arguments.chunks), asking))
        contenders = [behind, stack.enter_context(running(gateway(behind, folder), measured))]
        if arguments.litellm is not None:
            contenders.append(
                stack.enter_context(running(rival(arguments.litellm, behind, folder), measured))
            )
        for each in contenders:
            cell(each, KINDS[0], behind, arguments, requests=arguments.warm_up, prefix="warm")
        for place in range(arguments.rounds):
            for kind in (each for each in KINDS if each.name in arguments.loads):
                for served in contenders:
                    prefix = f"{kind.name}{place}-"
                    done = cell(served, kind, behind, arguments, requests=arguments.requests, prefix=prefix)
                    for problem, times in done.problems.items():
                        print(f"{served.server.name}, {kind.name}: {times} × {problem}", file=sys.stderr)
                    found.setdefault((kind.name, served.server.name), []).append(done)
    return {
        "clients": arguments.clients,
        "requests_a_round": arguments.requests,
        "rounds": arguments.rounds,
        "latency_s": arguments.latency,
        "chunks": arguments.chunks,
        "cores": {"clients and upstream": asking, "measured": measured},
        "loads": {
            kind: {
                server: figures_of(cells, found[kind, UPSTREAM])
                for (of, server), cells in found.items()
                if of == kind
            }
            for kind in dict.fromkeys(kind for kind, _ in found)
        },
        "machine": machine.describe(),
    }


def table(figures: Mapping[str, Any]) -> Table:
    """The figures for reading."""
    columns = {
        "requests/s": ("requests_a_second", ".0f"), "per processor s": ("requests_a_processor_second", ".0f"),
        "total p50 ms": ("total_p50_ms", ".1f"), "p99": ("total_p99_ms", ".1f"),
        "added p50 ms": ("added_p50_ms", ".2f"), "p99 ": ("added_p99_ms", ".2f"),
        "to first text p50": ("added_first_p50_ms", ".2f"), "p99  ": ("added_first_p99_ms", ".2f"),
        "wrong": ("wrong", "d"), "others": ("others_on_its_core", ".0%"),
    }  # fmt: skip
    shown = Table(
        "load", "server", title=f"{figures['clients']} clients, {figures['rounds']} rounds, medians"
    )
    for name in columns:
        shown.add_column(name, justify="right")
    for kind, servers in figures["loads"].items():
        for server, found in servers.items():
            shown.add_row(kind, server, *(format(found[key], form) for key, form in columns.values()))
        shown.add_section()
    return shown


def main() -> None:
    """Measures, prints a table, and writes JSON where asked; exits with 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--litellm", type=Path, help="LiteLLM's executable; without it LiteLLM is not measured"
    )
    parser.add_argument(
        "--loads", nargs="+", choices=[each.name for each in KINDS], default=[k.name for k in KINDS]
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.2, help="the upstream's, in seconds, in the mean")
    parser.add_argument("--requests", type=int, default=1000, help="of a server, a load and a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--warm-up", type=int, default=200, help="requests to each server before the first round"
    )
    parser.add_argument("--chunks", type=int, default=20, help="pieces of an answer")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument(
        "--soak", type=float, metavar="SECONDS", help="instead: mixed traffic, and what the gateway holds"
    )
    arguments = parser.parse_args()
    if arguments.soak is not None:
        sys.exit(gateway_soak.soak(arguments, upstream, gateway))
    figures = measure(arguments)
    Console(width=160).print(table(figures))
    machine.write(arguments.json, figures)
    sys.exit(any(each["wrong"] for servers in figures["loads"].values() for each in servers.values()))


if __name__ == "__main__":
    main()
