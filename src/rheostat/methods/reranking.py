"""Reranking (arXiv 2404.01295): sample N responses, keep the one whose scores are nearest to the request.

argmin_y Σ_a |score_a(y) − s_a| over calibrated scores (the distance is ours). Over a model that reads no control
the candidates of a prompt serve all its controls; over a tuned one each control samples its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rheostat.plugins import (
    Completion,
    ControlledCompletion,
    ControlledRequest,
    Engine,
    GenerationRequest,
    Judged,
    Method,
    MethodContext,
    Progress,
    Sampling,
    Scorer,
)
from rheostat.records import Control, Scores
from rheostat.scoring import nearest

HAS_DIAL = True


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None."""


def models(dials: Sequence[str]) -> dict[str, str]:
    """None beside the engine's."""
    return {}


def build(context: MethodContext) -> Method:
    """The method over the context's engine, its scorer and its number of samples."""
    return Reranking(context.engine, context.scorer, context.samples, is_controlled=context.is_controlled)


@dataclass(frozen=True, slots=True)
class Reranking:
    """Best of `samples` by distance to the control."""

    engine: Engine
    scorer: Scorer
    samples: int
    is_controlled: bool

    def respond(
        self,
        requests: Sequence[ControlledRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[ControlledCompletion]:
        """The nearest candidate of each request; `generated_tokens` counts all that serving it alone would take."""
        asked = [
            GenerationRequest(each.messages, each.control if self.is_controlled else None, self.samples)
            for each in requests
        ]
        distinct: dict[object, int] = {}
        places = [distinct.setdefault(_key(request), len(distinct)) for request in asked]
        first = {place: asked[index] for index, place in reversed(list(enumerate(places)))}
        pools = self.engine.generate([first[place] for place in range(len(distinct))], sampling, seed=seed)
        judged = [
            Judged(first[place].messages, completion.text)
            for place, pool in enumerate(pools)
            for completion in pool
        ]
        scores = self.scorer.score(judged)
        answers = []
        for request, place in zip(requests, places, strict=True):
            own = scores[place * self.samples : (place + 1) * self.samples]
            answers.append(_nearest(pools[place], own, request.control))
            if progress is not None:
                progress(1)
        return answers


def _key(request: GenerationRequest) -> object:
    control = None if request.control is None else tuple(sorted(request.control.items()))
    return request.messages, control


def _nearest(pool: Sequence[Completion], scores: Sequence[Scores], control: Control) -> ControlledCompletion:
    best = nearest(scores, control)
    return ControlledCompletion(pool[best], sum(completion.tokens for completion in pool))
