"""The scored pool told apart: which responses can be learned from, and what befell the others. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rheostat.control import ControlFormat
from rheostat.records import ScoredResponse


class Candidate(NamedTuple):
    """A usable response, its calibrated scores and its quantised control in the order of the control text."""

    response: ScoredResponse
    scores: tuple[float, ...]
    cell: tuple[float, ...]

    def distance(self, point: Sequence[float]) -> float:
        """L1 on calibrated scores."""
        return sum(abs(score - wanted) for score, wanted in zip(self.scores, point, strict=True))


Fate = Literal["usable", "empty", "truncated", "outside", "duplicate"]


class UsablePool(NamedTuple):
    """The usable responses of each prompt that has any, in order, and what befell all responses."""

    candidates: Mapping[str, Sequence[Candidate]]
    fates: Mapping[Fate, int]
    prompts_without_responses: int

    @property
    def usable(self) -> list[Candidate]:
        """All usable responses, by prompt id and sample number."""
        return [candidate for responses in self.candidates.values() for candidate in responses]


def usable_pool(
    scored: Mapping[str, Sequence[ScoredResponse]],
    control_format: ControlFormat,
    *,
    with_repeats: bool,
    with_truncated: bool,
) -> UsablePool:
    """The usable responses, prompts by id and responses by sample number, whatever the order of `scored`."""
    candidates: dict[str, list[Candidate]] = {}
    fates: Counter[Fate] = Counter()
    for prompt in sorted(scored):
        texts: set[str] = set()
        for response in sorted(scored[prompt], key=lambda each: (each.sample, each.text)):
            fate = _fate(response, texts, control_format, with_truncated=with_truncated)
            fates[fate] += 1
            if fate == "usable":
                scores = tuple(response.calibrated[name] for name in control_format.names)
                cell = tuple(map(control_format.quantise, control_format.names, scores))
                candidates.setdefault(prompt, []).append(Candidate(response, scores, cell))
                if not with_repeats:
                    texts.add(response.text)
    return UsablePool(candidates, fates, len(scored) - len(candidates))


def _fate(
    response: ScoredResponse, texts: set[str], control_format: ControlFormat, *, with_truncated: bool
) -> Fate:
    if not response.text.strip():
        return "empty"
    if response.finish == "length" and not with_truncated:
        return "truncated"
    if not all(control_format.holds(name, response.calibrated[name]) for name in control_format.names):
        return "outside"
    return "duplicate" if response.text in texts else "usable"
