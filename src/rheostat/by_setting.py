"""Requests answered setting by setting: for methods whose dials turn something that a whole batch shares."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from rheostat.plugins import Completion, ControlledCompletion, ControlledRequest, GenerationRequest
from rheostat.records import Control

Setting = TypeVar("Setting", bound=Hashable)


def answer_by_setting(
    requests: Sequence[ControlledRequest],
    setting_of: Callable[[Control], Setting],
    answer: Callable[[Setting, Sequence[GenerationRequest], int], list[list[Completion]]],
) -> list[ControlledCompletion]:
    """One completion a request, in order; those whose controls come to the same setting are answered together.

    `answer` is given a setting, what is asked under it, without controls, and the place of the first such request.
    """
    settings: dict[Setting, list[int]] = {}
    for place, request in enumerate(requests):
        settings.setdefault(setting_of(request.control), []).append(place)
    answers: dict[int, Completion] = {}
    for setting, places in settings.items():
        asked = [GenerationRequest(requests[place].messages) for place in places]
        answers |= {place: each[0] for place, each in zip(places, answer(setting, asked, places[0]), strict=True)}
    return [ControlledCompletion(answers[place], answers[place].tokens) for place in range(len(requests))]
