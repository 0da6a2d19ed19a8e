"""What every objective and method file on disk keeps to, whoever wrote it: parametrised over the folders."""

import dataclasses
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rheostat import plugins
from rheostat.method_name import MethodName
from rheostat.plugins import (
    Completion,
    ControlledRequest,
    GenerationRequest,
    LogProbabilities,
    MethodContext,
    Needs,
    ObjectiveInputs,
    PairInputs,
    Progress,
    Sampling,
)
from rheostat.records import Message

TESTS = Path(__file__).resolve().parent
OBJECTIVES = plugins.available("objectives")
METHODS = plugins.available("methods")
DIALS = ("helpfulness", "safety")
ROWS, TOKENS = 6, 5


def logprobs(generator: torch.Generator, *, rows: int = ROWS, learns: bool = False) -> LogProbabilities:
    """Random token log-probabilities of rows of different lengths, zero beyond."""
    mask = torch.arange(TOKENS) < torch.arange(rows)[:, None] % TOKENS + 1
    values = torch.rand(rows, TOKENS, generator=generator).clamp(0.05, 0.95).log() * mask
    return LogProbabilities(values.requires_grad_(learns), mask)


def example_inputs(seed: int) -> tuple[ObjectiveInputs, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    factual, counterfactual = (logprobs(generator, rows=rows, learns=True) for rows in (ROWS, ROWS // 2))
    rows = torch.randperm(ROWS, generator=generator)[: ROWS // 2]
    changed = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    return ObjectiveInputs(factual, counterfactual, rows, changed), [factual.values]


def pair_inputs(seed: int, needs: Needs) -> tuple[PairInputs, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (logprobs(generator, learns=True) for _ in range(2))
    reference_chosen, reference_rejected = (logprobs(generator) for _ in range(2))
    scores = {name: torch.rand(2, ROWS, generator=generator).sort(dim=0).values for name in DIALS}
    worse, better = ({name: each[place] for name, each in scores.items()} for place in range(2))
    signs = torch.tensor([1.0, -1.0]).repeat(TOKENS)[:TOKENS]
    rewarded = needs.token_rewards_of is not None
    gates = {role: torch.rand(12, generator=generator, requires_grad=True) for role in needs.experts}
    shared = torch.zeros(ROWS, dtype=torch.long)
    inputs = PairInputs(
        chosen,
        rejected,
        reference_chosen,
        reference_rejected,
        better,
        worse,
        shared,
        chosen_token_rewards=chosen.mask * signs if rewarded else None,
        rejected_token_rewards=rejected.mask * -signs if rewarded else None,
        gates=gates,
    )
    return inputs, [chosen.values, rejected.values]


def absurd(options: Any) -> list[tuple[str, float]]:
    """For each number among the options what it can't be: no number, endless, or a count below 0 (but a seed may)."""
    found: list[tuple[str, float]] = []
    for field in dataclasses.fields(options):
        found += [(field.name, math.nan), (field.name, math.inf)] if field.type is float else []
        found += [(field.name, -1)] if field.type is int and field.name != "seed" else []
    return found


def _is_frozen(options: Any) -> None:
    assert dataclasses.is_dataclass(options)
    frozen: Any = options
    assert frozen.__dataclass_params__.frozen


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_file_has_its_parts(name: str) -> None:
    module: Any = plugins.load("objectives", name)
    assert isinstance(module.NEEDS, Needs)
    _is_frozen(module.OPTIONS)
    module.OPTIONS()
    entry = module.reward if module.NEEDS.rows == "prompts" else module.loss
    for documented in (module, module.OPTIONS, entry):
        assert inspect.getdoc(documented), documented
    words = module.__doc__
    assert re.search(r"^[\w\s]+ = ", words, re.MULTILINE), "the docstring gives no formula"
    assert re.search(r"arXiv \d{4}\.\d{5}|[Oo]urs", words), "the docstring gives no source"
    trainings = [module.NEEDS.token_rewards_of, *module.NEEDS.experts.values()]
    assert all(MethodName.parse(each).objective for each in trainings if each)
    assert module.NEEDS.ordered_by in (None, *plugins.available("attributes"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_named_by_a_test_of_its_own(name: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py") if path != Path(__file__)]
    assert any(re.search(rf"import [^\n]*\b{name}\b|objectives\.{name}\b|\"{name}\"", source) for source in sources)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_has_a_finite_loss_and_a_gradient(name: str, seed: int) -> None:
    module: Any = plugins.load("objectives", name)
    if module.NEEDS.rows == "prompts":
        scores = [{"helpfulness": 0.2, "safety": 0.9}, {"helpfulness": 1.0, "safety": 0.0}]
        controls = [{"helpfulness": 1.0, "safety": 1.0}, {"helpfulness": 1.0, "safety": 0.0}]
        rewards = module.reward(scores, controls, module.OPTIONS())
        assert rewards and all(len(each) == 2 for each in rewards.values())
        assert all(math.isfinite(one) and one <= 0 for each in rewards.values() for one in each)
        totals = [sum(each[place] for each in rewards.values()) for place in range(2)]
        assert totals[0] < totals[1] == 0
        return
    inputs: Any
    if module.NEEDS.rows == "pairs":
        inputs, learning = pair_inputs(seed, module.NEEDS)
    else:
        inputs, learning = example_inputs(seed)
    loss = module.loss(inputs, module.OPTIONS())
    assert loss.total.shape == () and torch.isfinite(loss.total)
    assert "nll" in loss.parts, "the log of a training shows the steps that have it"
    assert all(part.shape == () and torch.isfinite(part) and not part.requires_grad for part in loss.parts.values())
    loss.total.backward()
    for values in learning:
        assert values.grad is not None and torch.isfinite(values.grad).all() and values.grad.abs().sum() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_refuses_absurd_options(name: str) -> None:
    _refuses_absurd(plugins.load("objectives", name).OPTIONS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_refuses_absurd_options(name: str) -> None:
    _refuses_absurd(plugins.load("methods", name).OPTIONS)


def _refuses_absurd(options: Any) -> None:
    for field, value in absurd(options):
        with pytest.raises(ValueError, match=f"(?s){field}.*got"):
            options(**{field: value})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_file_has_its_parts(name: str) -> None:
    module: Any = plugins.load("methods", name)
    _is_frozen(module.OPTIONS)
    module.OPTIONS()
    assert isinstance(module.HAS_DIAL, bool)
    assert callable(module.build)
    for documented in (module, module.OPTIONS, module.models, module.build):
        assert inspect.getdoc(documented), documented
    if name not in ("base", "tuned"):
        assert re.search(r"arXiv \d{4}\.\d{5}|[Oo]urs", module.__doc__), "the docstring gives no source"
    for dials in (DIALS, DIALS[::-1]):
        trainings = module.models(dials)
        assert all(isinstance(role, str) for role in trainings)
        assert all(MethodName.parse(each).objective for each in trainings.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_is_validated_with_a_method_without_loading_torch(name: str) -> None:
    load = f"plugins.load('methods', '{name}')"
    code = f"import sys; from rheostat import plugins; {load}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Recorder:
    """An engine whose candidates repeat what it was asked and count; a scorer that likes each more than the last."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        return [
            [Completion(f"{place} {request!r}", 3, "stop") for place in range(request.samples)] for request in requests
        ]

    def score(self, items: Sequence[Any], *, progress: Progress | None = None) -> list[dict[str, float]]:
        return [{"helpfulness": place / len(items), "safety": 1.0} for place in range(len(items))]


@pytest.mark.parametrize("name", [name for name in METHODS if not plugins.load("methods", name).models(DIALS)])
def test_a_method_over_one_model_has_the_dial_that_it_says(name: str) -> None:
    """Asked under two controls, its answers differ if and only if it has a dial. Of several models: test_bench.py."""
    module: Any = plugins.load("methods", name)
    recorder: Any = Recorder()
    attributes = tuple(plugins.attribute(each) for each in DIALS)
    context = MethodContext(recorder, True, recorder, attributes, 4, recorder, module.OPTIONS())
    controls = ({"helpfulness": 0.0, "safety": 1.0}, {"helpfulness": 1.0, "safety": 0.0})
    asked = [ControlledRequest((Message("user", "How do I boil an egg?"),), control) for control in controls]
    answers = module.build(context).respond(asked, Sampling(), seed=0)
    assert [each.completion.tokens for each in answers] == [3, 3]
    assert (answers[0].completion.text != answers[1].completion.text) == module.HAS_DIAL
