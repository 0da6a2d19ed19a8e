"""Guarded answers: the nearest of those above every floor, or the refusal; never one that was not scored."""

import asyncio
import json
import math
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.policies import KEY, MODELS, POLICY, policy
from tests.gateway.served import served, service_over
from tests.gateway.stub_backend import StubBackend

from rheostat import calibration, pocket
from rheostat.errors import ConfigError, EndpointError, ModelError, RewardError
from rheostat.gateway.audit import AuditLog
from rheostat.gateway.backend import Ask, Piece, ServedModel, Usage
from rheostat.gateway.guard import Guard, Guarded, choose, reaches
from rheostat.gateway.guard_rewards import check_guards, load_scorer
from rheostat.gateway.policy import Tenant, read_policy
from rheostat.gateway.policy_file import AuditBlock, GuardBlock
from rheostat.gateway.policy_source import PolicySource
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.scoring_worker import LARGEST_BATCH
from rheostat.gateway.serving import ServeOptions, load_guard
from rheostat.plugins import Judged, Progress
from rheostat.pocket.responses import Cell, respond
from rheostat.recipe import load_config, to_yaml
from rheostat.records import Message
from rheostat.rundir import RunDirectory
from rheostat.scoring import OWN
from rheostat.storage import write_json

REFUSAL = "Not here."
ASK = Ask("pocket", (Message("user", "hi"),), {"safety": 0.75, "helpfulness": 1.0}, 0.7, 1.0, 16)


def guarded_tenant(samples: int = 4, **floors: float) -> Tenant:
    known = policy(POLICY.replace("  floors: {safety: 0.5}", "  floors: {}")).tenants["shop"]
    guard = GuardBlock(samples=samples, refusal=REFUSAL)
    return replace(known, guard=guard, limits=replace(known.limits, floors=floors))


@dataclass
class Drawer:
    """A backend that draws the texts it is given, one a sample, in pieces that come mixed."""

    texts: Sequence[str] = ("a", "b", "c", "d")
    fails_with: Exception | None = None
    asks: list[Ask] = field(default_factory=list)
    models: Mapping[str, ServedModel] = field(default_factory=dict)
    waiting: int = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def check(self) -> None: ...

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | Usage, None]:
        self.asks.append(ask)
        texts = self.texts[: ask.samples]
        for sample, text in enumerate(texts):
            yield Piece(sample, text[:1])
        if self.fails_with is not None:
            raise self.fails_with
        for sample, text in reversed(list(enumerate(texts))):
            yield Piece(sample, text[1:], "length" if "cut" in text else "stop")
        yield Usage(5, sum(map(len, texts)))


@dataclass
class Rewards:
    """A scorer by rule; `gate` holds every batch back until it is set."""

    rule: Callable[[Judged], Any]
    gate: threading.Event | None = None
    batches: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[dict[str, float]]:
        self.batches.append(len(items))
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            assert self.gate.wait(20)
        return [self.rule(item) for item in items]


def by_text(**scores: tuple[float, float]) -> Rewards:
    """Scores (safety, helpfulness) by an answer's first letter."""
    return Rewards(lambda item: dict(zip(("safety", "helpfulness"), scores[item.response[0]], strict=True)))


def answer(drawer: Drawer, rewards: Rewards, tenant: Tenant, ask: Ask = ASK) -> Guarded:
    async def asked() -> Guarded:
        guard = Guard(drawer, rewards)
        try:
            return await guard.answer(ask, tenant)
        finally:
            await guard.stop()

    return asyncio.run(asked())


def test_the_nearest_above_the_floor_is_given() -> None:
    """a is nearest, (0.6, 1.0) to (0.75, 1.0), but does not reach the floor; of b, 0.25 + 0.2 away, and c, 0.3, c."""
    rewards = by_text(a=(0.6, 1.0), b=(1.0, 0.8), c=(0.75, 0.7), d=(0.1, 0.1))
    found = answer(Drawer(), rewards, guarded_tenant(safety=0.75))
    assert (found.text, found.finish, found.drawn, found.reached) == ("c", "stop", 4, 2)
    assert found.scores == {"safety": 0.75, "helpfulness": 0.7}
    assert found.usage == Usage(5, 4)
    assert found.report == {"samples": 4, "reached_floors": 2, "refused": False}


def test_none_above_the_floor_is_a_refusal() -> None:
    rewards = by_text(a=(0.6, 1.0), b=(0.62, 0.8), c=(0.2, 0.7), d=(0.1, 0.1))
    found = answer(Drawer(), rewards, guarded_tenant(safety=0.75))
    assert (found.text, found.finish, found.scores) == (REFUSAL, "content_filter", None)
    assert found.report == {"samples": 4, "reached_floors": 0, "refused": True}
    assert found.usage == Usage(5, 4), "what was drawn counts"


def test_every_floor_must_be_reached_and_a_dial_without_one_is_no_condition() -> None:
    rewards = by_text(a=(0.87, 0.3), b=(0.3, 0.9), c=(0.5, 0.5), d=(1.0, 0.0))
    assert answer(Drawer(), rewards, guarded_tenant(safety=0.5, helpfulness=0.5)).text == "c"
    assert answer(Drawer(), rewards, guarded_tenant(safety=1.0)).text == "d"
    assert answer(Drawer(), rewards, guarded_tenant()).report["reached_floors"] == 4


def test_a_truncated_sample_counts_as_it_is() -> None:
    rewards = by_text(a=(0.0, 0.0), b=(0.75, 1.0))
    found = answer(Drawer(("a", "b cut")), rewards, guarded_tenant(2, safety=0.5))
    assert (found.text, found.finish) == ("b cut", "length")


def test_samples_are_drawn_under_the_granted_control_and_nobody_waits_for_pieces() -> None:
    drawer = Drawer()
    answer(drawer, by_text(a=(1, 1), b=(1, 1), c=(1, 1), d=(1, 1)), guarded_tenant(3))
    assert drawer.asks == [replace(ASK, samples=3, stream=False)]


def test_at_temperature_zero_one_sample_is_all_of_them() -> None:
    drawer = Drawer()
    found = answer(drawer, by_text(a=(1, 1)), guarded_tenant(4), replace(ASK, temperature=0.0))
    assert (drawer.asks[0].samples, found.drawn) == (1, 1)


# --- It fails closed --------------------------------------------------------------------------------------------------


def raising(error: Exception) -> Rewards:
    def fail(item: Judged) -> Any:
        raise error

    return Rewards(fail)


class Short(Rewards):
    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[dict[str, float]]:
        return super().score(items)[:-1]


HIGH = {"safety": 1.0, "helpfulness": 1.0}


@pytest.mark.parametrize(
    "rewards",
    [
        raising(RewardError("down", hint="up")),
        raising(RuntimeError("CUDA out of memory")),
        raising(KeyError("logits")),
        Short(lambda item: HIGH),
        Rewards(lambda item: {"safety": 1.0}),
        Rewards(lambda item: HIGH | {"safety": math.nan}),
        Rewards(lambda item: HIGH | {"safety": math.inf}),
        Rewards(lambda item: HIGH | {"safety": 1.01}),
        Rewards(lambda item: HIGH | {"safety": None}),
        Rewards(lambda item: HIGH | {"safety": True}),
        Rewards(lambda item: HIGH if item.response != "d" else {**HIGH, "helpfulness": math.nan}),
    ],
)
def test_without_scores_of_every_sample_nothing_is_given(rewards: Rewards) -> None:
    """One answer of four without its score is enough; so is a dial without floor, since the choice goes by it."""
    with pytest.raises(Refusal) as caught:
        answer(Drawer(), rewards, guarded_tenant(safety=0.5))
    assert (caught.value.status, caught.value.code) == (503, "guard_unavailable")
    assert "down" not in str(caught.value) and "CUDA" not in str(caught.value), "what failed is for the log"


def test_a_backend_that_fails_while_it_draws_gives_nothing() -> None:
    broken = EndpointError("gone", hint="…")
    with pytest.raises(EndpointError):
        answer(Drawer(fails_with=broken), by_text(a=(1, 1)), guarded_tenant())


def test_a_score_of_one_answer_fails_closed_too() -> None:
    async def scored(rewards: Rewards) -> Mapping[str, float]:
        return await Guard(Drawer(), rewards).score(ASK, "a")

    assert asyncio.run(scored(by_text(a=(0.5, 0.25)))) == {"safety": 0.5, "helpfulness": 0.25}
    with pytest.raises(Refusal):
        asyncio.run(scored(Rewards(lambda item: {})))


@pytest.mark.parametrize(
    ("score", "floor", "does"),
    [(0.625, 0.75, True), (0.62, 0.75, False), (0.875, 1.0, True), (0.87, 1.0, False), (0.9, 0.5, True), (0, 0, True)],
)
def test_a_score_reaches_a_floor_from_half_way_to_the_level_below(score: float, floor: float, does: bool) -> None:
    assert reaches(score, floor) is does


def _reaches(score: float, floor: float) -> bool:
    """By hand: no further from the floor than from the level below it."""
    lower = [level for level in (0.0, 0.25, 0.5, 0.75) if level < floor]
    return not lower or abs(floor - score) <= abs(lower[-1] - score)


@given(
    st.lists(st.fixed_dictionaries({"safety": st.floats(0, 1), "helpfulness": st.floats(0, 1)}), min_size=1),
    st.dictionaries(st.sampled_from(["safety", "helpfulness"]), st.floats(0, 1)),
)
def test_no_choice_is_below_a_floor_and_none_is_missed(
    scores: list[dict[str, float]], floors: dict[str, float]
) -> None:
    place, reached = choose(scores, ASK.control, floors)
    fit = [own for own in scores if all(_reaches(own[dial], floor) for dial, floor in floors.items())]
    assert reached == len(fit) and (place is None) == (not fit)
    if place is not None:
        distances = [abs(own["safety"] - 0.75) + abs(own["helpfulness"] - 1.0) for own in fit]
        chosen = scores[place]
        assert chosen in fit
        assert abs(chosen["safety"] - 0.75) + abs(chosen["helpfulness"] - 1.0) == min(distances)


# --- Scored together --------------------------------------------------------------------------------------------------


def test_requests_that_wait_are_scored_in_one_batch_off_the_event_loop() -> None:
    """The first of 32 is on its way when the others come: two batches in all, in a thread of their own."""
    gate = threading.Event()
    rewards = Rewards(lambda item: HIGH, gate)

    async def asked() -> list[Guarded]:
        guard = Guard(Drawer(), rewards)
        first = asyncio.create_task(guard.answer(ASK, guarded_tenant()))
        while not rewards.batches:
            await asyncio.sleep(0)
        others = [asyncio.create_task(guard.answer(ASK, guarded_tenant())) for _ in range(31)]
        for _ in range(50):
            await asyncio.sleep(0)  # the loop is free while the rewards work
        gate.set()
        return await asyncio.gather(first, *others)

    assert len(asyncio.run(asked())) == 32
    assert rewards.batches == [4, 124]
    assert threading.get_ident() not in rewards.threads and len(rewards.threads) == 1


def test_a_batch_has_a_limit_and_each_gets_its_own_scores() -> None:
    rewards = Rewards(lambda item: {"safety": float(item.response) / 1000, "helpfulness": 1.0})

    async def asked() -> list[Mapping[str, float]]:
        guard = Guard(Drawer(), rewards)
        return await asyncio.gather(*(guard.score(ASK, str(number)) for number in range(LARGEST_BATCH + 100)))

    found = asyncio.run(asked())
    assert [each["safety"] for each in found] == [number / 1000 for number in range(LARGEST_BATCH + 100)]
    assert max(rewards.batches) == LARGEST_BATCH and len(rewards.batches) == 2


def test_ones_fault_is_not_anothers() -> None:
    """A conversation that a reward cannot read fails its own request, not those in its batch."""

    def rule(item: Judged) -> Mapping[str, float]:
        if item.response == "bad":
            raise RewardError("cannot read it", hint="…")
        return HIGH

    async def asked() -> list[object]:
        guard = Guard(Drawer(), Rewards(rule))
        texts = ["good", "bad", "good"]
        return await asyncio.gather(*(guard.score(ASK, text) for text in texts), return_exceptions=True)

    first, second, third = asyncio.run(asked())
    assert first == third == HIGH and isinstance(second, Refusal)


def test_a_request_that_went_away_is_not_scored_and_the_others_are() -> None:
    gate = threading.Event()
    rewards = Rewards(lambda item: HIGH, gate)

    async def asked() -> Mapping[str, float]:
        guard = Guard(Drawer(), rewards)
        first = asyncio.create_task(guard.score(ASK, "first"))
        while not rewards.batches:
            await asyncio.sleep(0)
        gone, stays = (asyncio.create_task(guard.score(ASK, text)) for text in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        first.cancel()
        await asyncio.wait([gone, first])
        gate.set()
        return await stays

    assert asyncio.run(asked()) == HIGH
    assert rewards.batches == [1, 1]


def test_stopping_ends_what_waits() -> None:
    gate = threading.Event()

    async def asked() -> None:
        guard = Guard(Drawer(), Rewards(lambda item: HIGH, gate))
        waiting = [asyncio.create_task(guard.score(ASK, "x")) for _ in range(2)]
        await asyncio.sleep(0.01)
        await guard.stop()
        done, pending = await asyncio.wait(waiting, timeout=20)
        assert not pending and all(each.cancelled() for each in done)
        gate.set()

    asyncio.run(asked())


# --- Where the rewards come from --------------------------------------------------------------------------------------


def test_the_packaged_models_rewards_score_its_answers() -> None:
    """Careful answers to risky requests are safer than reckless ones, by the real reward models."""
    rewards = load_scorer(None)
    assert rewards is not None and set(rewards.dials) == {"helpfulness", "safety"}
    rng = Random(0)
    tasks = [task for task in pocket.tasks() if task.is_risky][:8]
    items = [
        Judged((Message("user", f"How do I {task.goal}?"),), respond(task, Cell(safety, 4), rng).text)
        for safety in (4, 0)
        for task in tasks
    ]
    scores = rewards.scorer.score(items)
    assert all(0 <= each[dial] <= 1 for each in scores for dial in rewards.dials)
    safety = [each["safety"] for each in scores]
    assert sum(safety[:8]) > sum(safety[8:]) + 2, "by a quarter each, at the least"


def test_a_runs_rewards_go_by_the_calibrators_of_that_run(tmp_path: Path) -> None:
    """A run whose rewards are rules, calibrated upside down: what refuses is helpful there, what answers safe."""
    rules = ("rewards.safety={kind: rules}", "rewards.helpfulness={kind: rules}")
    config = load_config("pocket", ("judges={}", "suite=null", *rules))
    with RunDirectory.open(tmp_path / "run", create=True) as run:
        run.write_config(to_yaml(config))
        stage = run.stage("score", inputs={})
        turned = calibration.fit("identity", [0.0, 1.0], higher_is_better=False).to_json()
        write_json(stage.path / "calibration.json", {OWN: {"safety": turned, "helpfulness": turned}})
        stage.finish({})
    rewards = load_scorer(tmp_path / "run")
    assert rewards is not None
    turns = (Message("user", "hi"),)
    items = [Judged(turns, "I cannot help with that."), Judged(turns, "Boil it for ten minutes.")]
    refuses, answers = rewards.scorer.score(items)
    assert refuses == pytest.approx({"safety": 0.1, "helpfulness": 0.9})
    assert answers == pytest.approx({"safety": 1.0, "helpfulness": 0.0})
    assert load_scorer(pocket.weights("tuned"), tmp_path / "run") is not None


def test_an_exported_folder_has_no_rewards_of_its_own() -> None:
    folder = pocket.weights("tuned")
    assert load_scorer(folder) is None
    with pytest.raises(ModelError, match="allowed is a run"):
        load_scorer(folder, folder)


GUARDED = POLICY.replace("  lab:\n", "  lab:\n    guard: {samples: 2}\n")


def test_a_guard_without_rewards_is_told_at_the_start() -> None:
    guarded = read_policy(GUARDED, MODELS)
    check_guards(guarded, ("safety", "helpfulness"))
    check_guards(policy(), None)
    for block in ("guard: {samples: 2}", "scores: true"):
        asks = read_policy(POLICY.replace("  lab:\n", f"  lab:\n    {block}\n"), MODELS)
        key = block.partition(":")[0]
        with pytest.raises(ConfigError, match=rf"tenants\.lab\.{key}: there are no reward models"):
            check_guards(asks, None)
        with pytest.raises(ConfigError, match=rf"tenants\.lab\.{key}: the gateway was started without .* restart it"):
            check_guards(asks, None, are_left_out=True)
    with pytest.raises(ConfigError, match=r"tenants\.lab\.guard: there are no reward models"):
        check_guards(guarded, None)
    with pytest.raises(ConfigError, match=r"tenants\.lab\.guard: no reward model scores helpfulness"):
        check_guards(guarded, ("safety",))


@pytest.mark.parametrize("block", ["guard: {samples: 2}", "scores: true"])
@pytest.mark.parametrize(
    ("model", "said"),
    [(None, "started without reward models: restart it to load them"), ("tuned", "there are no reward models")],
    ids=["packaged", "exported"],
)
def test_a_reload_that_asks_for_rewards_is_refused_with_the_true_reason(
    tmp_path: Path, model: str | None, said: str, block: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    source = PolicySource(path, MODELS)
    options = serve_options(run=None if model is None else pocket.weights(model))
    assert load_guard(options, StubBackend(), source) is None
    asks = POLICY.replace("  lab:\n", f"  lab:\n    {block}\n")
    path.write_text(asks)
    assert not source.reload()
    assert said in (source.status().last_error or "") and block.partition(":")[0] in (source.status().last_error or "")
    path.write_text(POLICY)
    assert source.reload()
    # A gateway that is started with it has what it asks for, or does not start.
    path.write_text(asks)
    source = PolicySource(path, MODELS)
    if model is None:
        assert load_guard(options, StubBackend(), source) is not None
        path.write_text(POLICY)
        assert source.reload()
        path.write_text(GUARDED)
        assert source.reload(), "the rewards are there"
    else:
        with pytest.raises(ConfigError, match=said):
            load_guard(options, StubBackend(), source)


def serve_options(run: Path | None) -> ServeOptions:
    return ServeOptions(
        run=run, method=None, name=None, upstream=None, rewards=None, policy=None, is_insecure=False,
        host="127.0.0.1", port=0, concurrency=1, queue=1, timeout_s=1.0, drain_s=1.0, max_body=1, request_s=1.0,
        connections=1, allow_origins=(), device="cpu",
    )  # fmt: skip


# --- In the gateway ---------------------------------------------------------------------------------------------------


def test_scores_of_a_guarded_answer_are_audited_and_shown_to_who_may_see_them(tmp_path: Path) -> None:
    """The answer says how many reached the floors; its scores only where `score: true` was asked for and allowed."""
    file = tmp_path / "policy.yaml"
    lines = "    guard: {samples: 2, refusal: Not here.}\n    scores: true\n"
    file.write_text(POLICY.replace("  shop:\n", f"  shop:\n{lines}").replace("pocket", "stub"))
    backend, log = StubBackend(), AuditLog(AuditBlock(path=str(tmp_path / "audit.jsonl")))
    rewards = Rewards(lambda item: {"safety": 0.25 if "bad" in item.response else 0.75, "helpfulness": 0.5})
    formats = {name: model.control_format for name, model in backend.models.items()}
    service = service_over(backend, callers=PolicySource(file, formats), audit=log, guard=Guard(backend, rewards))

    def asked(text: str, **more: Any) -> Any:
        body = {"model": "stub", "messages": [{"role": "user", "content": text}], "temperature": 1, **more}
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{opened.url}/v1/chat/completions", json=body, headers=headers, timeout=30)

    with served(service) as opened:
        plain, scored, refused, streamed = asked("x"), asked("x", score=True), asked("bad"), asked("bad", stream=True)
    for found, reached in ((plain, 2), (scored, 2), (refused, 0)):
        assert found.status_code == 200, found.text
        assert found.json()["rheostat"]["guard"]["reached_floors"] == reached
    scores = {"safety": 0.75, "helpfulness": 0.5}
    assert "scores" not in plain.json()["rheostat"] and scored.json()["rheostat"]["scores"] == scores
    choice = refused.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Not here.", "content_filter")
    assert "Not here." in streamed.text and '"content_filter"' in streamed.text and "bad" not in streamed.text
    noted = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
    assert [each["scores"] for each in noted] == [scores, scores, None, None]
    assert [each["guard"]["refused"] for each in noted] == [False, False, True, True]
    assert [each["finish"] for each in noted] == [["stop"], ["stop"], ["content_filter"], ["content_filter"]]
