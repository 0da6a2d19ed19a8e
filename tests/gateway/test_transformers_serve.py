"""The real `transformers serve` with an exported model behind the whole gateway, asked by the real OpenAI client.

Under load it is killed and started again: every answer that comes is the expected one, nothing hangs, and what cannot
be answered meanwhile is said plainly.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.served import Served, served, service_over

import rheostat
from rheostat import pocket
from rheostat.gateway.upstream import Upstream
from rheostat.gateway.upstream_client import UpstreamOptions

openai = pytest.importorskip("openai")  # here, once: threads that import it side by side trip over each other
NEEDED = ("fastapi", "uvicorn")
SERVE = Path(sys.executable).with_name("transformers")
FOLDER = pocket.weights("tuned")
PROMPT = "How do I boil an egg?"
DIALS: list[dict[str, float]] = [{"helpfulness": h, "safety": s} for h in (0.0, 1.0) for s in (0.0, 1.0)]
TOKENS = 24
LONGEST_S = 60.0

Answers = Mapping[tuple[float, ...], str]

absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(absent), reason=f"needs rheostat[serving]: {', '.join(absent)} absent"),
    pytest.mark.skipif(not SERVE.exists(), reason="needs the console script `transformers` beside this Python"),
    pytest.mark.timeout(400),
]


@dataclass
class Server:
    """`transformers serve` on a port that stays; its log is shown where it does not come up."""

    home: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        environment = {**os.environ, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [str(SERVE), "serve", str(FOLDER), "--port", str(self.port), "--host", "127.0.0.1", "--device", "cpu"]
        with (self.home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 150
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (self.home / "serve.log").read_text(errors="replace")
                pytest.fail(f"the server did not come up: {said[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(tmp_path_factory.mktemp("home"), port)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def expected() -> Answers:
    """The greedy answer in process, by dials."""
    model = rheostat.load()
    answers = model.respond_batch([(PROMPT, dials) for dials in DIALS], temperature=0, max_tokens=TOKENS)
    assert len(set(answers)) > 1, "the dials that are asked for give different answers"
    return {tuple(dials.values()): answer for dials, answer in zip(DIALS, answers, strict=True)}


@contextmanager
def gateway(server: Server, patience_s: float = 0.5) -> Iterator[Served]:
    backend: Any = Upstream(FOLDER, UpstreamOptions(f"http://127.0.0.1:{server.port}", patience_s=patience_s))
    with served(service_over(backend)) as opened:
        yield opened


def client_of(gateway: Served) -> Any:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=LONGEST_S)


def health(gateway: Served) -> int:
    return httpx.get(f"{gateway.url}/health", timeout=LONGEST_S).status_code


def ask(client: Any, dials: Mapping[str, float], *, stream: bool, **more: Any) -> tuple[str, str | None]:
    """The text of one greedy answer and why it ended."""
    answer = client.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": PROMPT}],
        temperature=0,
        max_tokens=TOKENS,
        stream=stream,
        extra_body=dict(dials),
        **more,
    )
    if not stream:
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    text, finish = "", None
    for chunk in answer:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish


@dataclass
class Tally:
    """What has become of the requests so far; `unlike` holds everything that must not be."""

    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unlike: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 150
        while not reached():
            assert time.monotonic() < deadline, f"{what} did not come: {self}"
            assert not self.unlike, self.unlike
            time.sleep(0.02)


def work(url: Served, number: int, expected: Answers, tally: Tally, over: threading.Event) -> None:
    """Asks without a pause, dials and streaming in turn."""
    client, count = client_of(url), number
    while not over.is_set():
        count += 1
        dials, stream = DIALS[count % len(DIALS)], bool(count // len(DIALS) % 2)
        begun = time.monotonic()
        try:
            text, finish = ask(client, dials, stream=stream)
        except openai.APIStatusError as error:
            with tally.lock:
                tally.errors[f"{error.status_code} {error.code}"] += 1
                if error.status_code not in (502, 503, 504) or not str(error.code).startswith("upstream_"):
                    tally.unlike.append(f"{error.status_code}: {error.response.text}")
        except openai.APIError as error:  # in the middle of a stream
            with tally.lock:
                tally.errors[f"stream {error.code}"] += 1
                if not str(error.code).startswith("upstream_"):
                    tally.unlike.append(f"{type(error).__name__}: {error}")
        else:
            with tally.lock:
                if text == expected[tuple(dials.values())] and finish in ("stop", "length"):
                    tally.right += 1
                else:
                    tally.unlike.append(f"{dials} stream={stream}: {text!r} ({finish})")
        if time.monotonic() - begun > LONGEST_S - 1:
            tally.unlike.append(f"took {time.monotonic() - begun:.0f} s")
        over.wait(0.01)


def test_killed_and_started_again_under_load(server: Server, expected: Answers) -> None:
    tally, over = Tally(), threading.Event()
    with gateway(server) as opened:
        threads = [threading.Thread(target=work, args=(opened, n, expected, tally, over)) for n in range(6)]
        for thread in threads:
            thread.start()
        try:
            tally.wait(lambda: tally.right >= 12, "answers")
            assert health(opened) == 200
            server.kill()
            failed = tally.errors.total()
            tally.wait(lambda: tally.errors.total() >= failed + 12, "errors")
            tally.wait(lambda: health(opened) == 503, "bad health")
            server.start()
            before = tally.right
            tally.wait(lambda: tally.right >= before + 12, "answers afterwards")
            tally.wait(lambda: health(opened) == 200, "good health")
        finally:
            over.set()
            for thread in threads:
                thread.join(LONGEST_S + 10)
        assert not any(thread.is_alive() for thread in threads), "nothing hangs"
    assert not tally.unlike, tally.unlike


def test_what_transformers_serve_ignores_is_made_good(server: Server, expected: Answers) -> None:
    """It takes no notice of `n` and leaves a stop text in its answer; behind the gateway neither shows."""
    dials = DIALS[-1]
    whole = expected[tuple(dials.values())]
    stop = whole.split()[3]
    with gateway(server) as opened:
        client = client_of(opened)
        for stream in (False, True):
            text, finish = ask(client, dials, stream=stream, stop=[stop])
            assert (text, finish) == (whole[: whole.index(stop)], "stop")
        answers = client.chat.completions.create(
            model="tuned", messages=[{"role": "user", "content": PROMPT}], temperature=0, max_tokens=TOKENS, n=3,
            extra_body=dials,
        )  # fmt: skip
        assert [choice.message.content for choice in answers.choices] == [whole] * 3
        assert answers.usage.completion_tokens % 3 == 0
