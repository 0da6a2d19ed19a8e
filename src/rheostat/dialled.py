"""The tuned model in a person's hands: `load(path).respond("…", safety=0.75, helpfulness=1.0)`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rheostat import plugins
from rheostat.card import read_card
from rheostat.control import ControlFormat
from rheostat.errors import InputError, ModelError
from rheostat.method_name import MethodName
from rheostat.model_files import PACKAGED, is_exported, resolve
from rheostat.models import load_policy
from rheostat.plugins import Engine, GenerationRequest, Sampling
from rheostat.recipe import load_config
from rheostat.records import Attribute, Message, Role
from rheostat.rundir import RunDirectory
from rheostat.storage import read_object
from rheostat.train import ADAPTER
from rheostat.trainings import Training

Conversation = str | Sequence[Message] | Sequence[Mapping[str, str]]
_ADAPTER = "adapter_config.json"
_BATCH_TOKENS = 16384
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class DialledModel:
    """A model with dials: each response obeys its own."""

    engine: Engine
    control_format: ControlFormat

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The dials and what they mean."""
        return self.control_format.attributes

    def respond(
        self,
        messages: Conversation,
        *,
        temperature: float = 0.7,
        top_p: float = 1.0,
        max_tokens: int = 128,
        seed: int = 0,
        **dials: float | None,
    ) -> str:
        """The response to a text or a conversation; `dials` in [0, 1] (`safety=0.75`), a missing one fully up.

        Raises `DialError`, `InputError` (an empty or malformed conversation, an impossible temperature, `top_p`,
        `max_tokens` or seed), `PromptTooLong`.
        """
        return self.respond_batch(
            [(messages, dials)], temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed
        )[0]

    def respond_batch(
        self,
        items: Sequence[tuple[Conversation, Mapping[str, float | None]]],
        *,
        temperature: float = 0.7,
        top_p: float = 1.0,
        max_tokens: int = 128,
        seed: int = 0,
    ) -> list[str]:
        """The responses to several conversations, each with its own dials, generated together.

        An item is a conversation and its dials: `[("How …?", {"safety": 0.5}), …]`. Raises as `respond` does.
        """
        requests = [_request(item, self.control_format) for item in items]
        sampling = _sampling(temperature, top_p, max_tokens, seed)
        return [each[0].text for each in self.engine.generate(requests, sampling, seed=seed)]


def load(path: str | Path | None = None, *, method: str | None = None, device: str = "auto") -> DialledModel:
    """The tuned model of a run directory, an exported one (whole, or an adapter), or the packaged pocket model.

    Of a run's tuned models `method` names one; without it, `exmate` or else the last. Raises `ModelError`.
    """
    folder = Path(resolve(PACKAGED)) if path is None else Path(path)
    if is_exported(folder):
        return _exported(folder, device)
    with RunDirectory.open(folder, read_only=True) as run:
        config = load_config(run.config_path)
        model, _ = tuned_model(run, method)
    policy = load_policy(str(model.resolve()), dtype=config.dtype, device=device)
    engine = plugins.load("engines", "transformers").build(
        policy, config.control_format, batch_tokens=config.batch_tokens
    )
    return DialledModel(engine, config.control_format)


def tuned_model(run: RunDirectory, method: str | None) -> tuple[Path, str]:
    """The folder and the name of one of a run's tuned models; raises `ModelError` where there is none."""
    config = load_config(run.config_path)
    tuned = {name.name: name for name in config.method_names if name.is_dialled_model}
    if not tuned or (method is not None and method not in tuned):
        known = {name.name: name for name in config.method_names}
        said = f"{method} {_unfit(known[method])};" if method in known else f"got the method {method!r};"
        raise ModelError(
            f"{said} this run's models with dials are {', '.join(tuned) or 'none'}",
            hint="name one of those, or add an objective that learns dials to `methods` and run again",
        )
    chosen = method or ("exmate" if "exmate" in tuned else list(tuned)[-1])
    return run.finished(Training.of(tuned[chosen], config).stage).path / "model", chosen


def _unfit(name: MethodName) -> str:
    """Why a method of a run is no model that can be turned by itself."""
    if name.reranking:
        return "answers many times and keeps one answer, which is more than a model"
    if name.objective is not None:
        return "has no dial"
    kind: plugins.MethodKind = plugins.load("methods", name.method)
    if kind.models(plugins.available("attributes")):
        return "is made of several models and cannot be used or exported as one"
    return "trains no model of its own"


def adapter_of(model: Path) -> Path:
    """Where the adapter of a tuned model's folder lies by itself, if low-rank adapters were trained."""
    return model.with_name(ADAPTER)


def conversation(messages: Conversation) -> tuple[Message, ...]:
    """Messages from a text, from dicts with `role` and `content`, or as they are. Raises `InputError`."""
    given = [Message("user", messages)] if isinstance(messages, str) else messages
    if not isinstance(given, Sequence):
        raise InputError(f"got the conversation {given!r}", hint="give a text, or a list of turns")
    turns = [_turn(each) for each in given]
    if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
        raise InputError(
            f"got a conversation of {len(turns)} turns that does not end in a user's text",
            hint="end it with a user turn that is not empty",
        )
    for place, turn in enumerate(turns, start=1):
        try:
            turn.content.encode("utf-8")
        except UnicodeEncodeError as error:
            broken = turn.content[error.start : error.end]
            raise InputError(
                f"turn {place}: got {broken!r} at character {error.start + 1}, allowed is text in UTF-8",
                hint="save or send it as UTF-8",
            ) from None
    return tuple(turns)


def _request(item: Any, control_format: ControlFormat) -> GenerationRequest:
    if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[1], Mapping):
        raise InputError(
            f"got the item {item!r}, allowed is a conversation with its dials",
            hint="for example ('How do I boil an egg?', {'safety': 0.5})",
        )
    return GenerationRequest(conversation(item[0]), control_format.resolve(item[1]))


def _sampling(temperature: float, top_p: float, max_tokens: int, seed: int) -> Sampling:
    for name, value, allowed, is_allowed in (
        ("temperature", temperature, "0 or more", 0 <= temperature < math.inf),
        ("top_p", top_p, "above 0, at most 1", 0 < top_p <= 1),
        ("max_tokens", max_tokens, "1 or more", max_tokens >= 1),
        ("seed", seed, "from 0 to 2^63 − 1", 0 <= seed < 2**63),
    ):
        if not is_allowed:
            raise InputError(f"{name}: got {value!r}, allowed is {allowed}", hint="leave it out for the default")
    return Sampling(temperature, top_p, max_tokens)


def _turn(value: Any) -> Message:
    if isinstance(value, Message):
        return value
    role, content = (value.get("role"), value.get("content")) if isinstance(value, Mapping) else (None, None)
    if role not in _ROLES or not isinstance(content, str):
        raise InputError(f"got the turn {value!r}", hint="a turn is {'role': 'user', 'content': '…'}")
    return Message(role, content)


def _exported(folder: Path, device: str) -> DialledModel:
    card = read_card(folder)
    adapter = folder if (folder / _ADAPTER).is_file() else None
    where = folder.resolve() if adapter is None else base_of(folder)
    policy = load_policy(str(where), device=device, adapter=adapter)
    # In process the engine renders the control itself, over the template without dials.
    policy.tokenizer.chat_template = card.chat_template
    engine = plugins.load("engines", "transformers").build(
        policy, card.control_format, batch_tokens=_BATCH_TOKENS
    )
    return DialledModel(engine, card.control_format)


def base_of(folder: Path) -> str:
    """The model that an adapter's folder was trained on; raises `ModelError` where it does not say."""
    base = read_object(folder / _ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{folder}: its {_ADAPTER} names no base model",
            hint="set base_model_name_or_path in it to the folder or id of the model that was tuned",
        )
    return base
