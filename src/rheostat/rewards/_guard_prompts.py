"""What a guard model is asked: its style (template, policy, verdicts), and a conversation put into it.

A style is a file in guards/. Nothing that a user or a model said can stand for a part of the prompt: neither the
tokenizer's special tokens (`chat.defuse`) nor the template's own marks, `<END CONVERSATION>` say, which a space
after their first character breaks. A turn that is written out in plain words ("USER: ...") stays possible.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rheostat import yaml_text
from rheostat.chat import defuse
from rheostat.errors import RewardError
from rheostat.plugins import Judged

if TYPE_CHECKING:
    from rheostat.models import LanguageModel

Moderates = Literal["response", "prompt"]
STYLES = Path(__file__).parent / "guards"
MODEL_TEMPLATE = "model"
"""In place of a template's file: the guard's own chat template."""

_MARK = re.compile(r"<[^<>{}\n]{2,60}>")


@dataclass(frozen=True, slots=True)
class Style:
    """A guard's prompt: a Jinja `template` of `messages`, `policy`, `bos_token` and `eos_token`, None for the model's
    own chat template; the `opening` of its answer; and what each verdict that may follow is worth, in [0, 1].
    """

    template: str | None
    policy: str
    opening: str
    verdicts: Mapping[str, float]


def style_names() -> list[str]:
    """The styles on disk."""
    return sorted(path.stem for path in STYLES.glob("*.yaml"))


def style_file(name: str) -> Path:
    """A style's file."""
    return STYLES / f"{name}.yaml"


def read_style(name: str, moderates: Moderates) -> Style:
    """A style on disk, for judging responses or prompts."""
    values: dict[str, Any] = yaml_text.parse(style_file(name).read_text(encoding="utf-8"))
    part = values[moderates]
    return Style(part["template"], part["policy"], values["opening"], values["verdicts"])


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt's token ids and those of each verdict after it, in the order of the verdicts."""

    ids: tuple[int, ...]
    verdicts: tuple[tuple[int, ...], ...]
    is_cut: bool


class Asker:
    """Puts conversations into a style for one guard model."""

    def __init__(self, guard: "LanguageModel", style: Style, moderates: Moderates) -> None:
        self._guard = guard
        self._style = style
        self._moderates = moderates
        if style.template is None and not guard.tokenizer.chat_template:
            raise RewardError(
                f"{guard.name}: got `template: model` for a tokenizer without chat template",
                hint=f"give a style ({', '.join(style_names())}) or a template's file",
            )
        source = str(guard.tokenizer.chat_template) if style.template is None else style.template
        marks = sorted(set(_MARK.findall(source)), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, marks)), re.IGNORECASE) if marks else None
        try:
            self._template = None if style.template is None else _ENVIRONMENT.from_string(style.template)
        except TemplateError as error:
            raise RewardError(
                f"{guard.name}: its template is not Jinja: {error}", hint="mend the template's file"
            ) from error

    def ask(self, items: Sequence[Judged]) -> list[Asked]:
        """The prompts of `items` and their verdicts, as tokens; what exceeds the context is cut from the turns.

        Raises `RewardError` where one verdict's tokens open another's, or where the prompt without its turns does
        not fit.
        """
        prompts = [self._prompt(self._turns(item)) for item in items]
        asked = self._encode(prompts)
        for number, each in enumerate(asked):
            longest = max(map(len, each.verdicts))
            if len(each.ids) + longest > self._guard.context:
                asked[number] = self._shortened(items[number])
        return asked

    def _turns(self, item: Judged) -> list[dict[str, str]]:
        turns = [{"role": message.role, "content": self._plain(message.content)} for message in item.messages]
        if self._moderates == "response":
            turns.append({"role": "assistant", "content": self._plain(item.response)})
        return turns

    def _plain(self, text: str) -> str:
        """`text` without anything that stands for a part of the prompt."""
        while True:
            plain = defuse(self._guard.tokenizer, text)
            if self._marks is not None:
                plain = self._marks.sub(lambda found: f"{found[0][0]} {found[0][1:]}", plain)
            if plain == text:
                return text
            text = plain

    def _prompt(self, turns: Sequence[Mapping[str, str]]) -> str:
        tokenizer, style = self._guard.tokenizer, self._style
        try:
            if self._template is None:
                more = {"guideline": style.policy} if style.policy else {}
                text = tokenizer.apply_chat_template(
                    list(turns), tokenize=False, add_generation_prompt=True, **more
                )
            else:
                text = self._template.render(
                    messages=turns,
                    policy=style.policy,
                    bos_token=tokenizer.bos_token or "",
                    eos_token=tokenizer.eos_token or "",
                )
        except TemplateError as error:
            raise RewardError(
                f"{self._guard.name}: its template refuses the conversation: {error}",
                hint="a template reads messages (role and content), policy, bos_token and eos_token",
            ) from error
        return f"{text}{style.opening}"

    def _encode(self, prompts: Sequence[str]) -> list[Asked]:
        """What all verdicts' rows share is the prompt, so tokens that join across the border are counted rightly."""
        if not prompts:
            return []
        verdicts = list(self._style.verdicts)
        texts = [prompt + verdict for prompt in prompts for verdict in verdicts]
        rows = self._guard.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        found = []
        for start in range(0, len(rows), len(verdicts)):
            group = rows[start : start + len(verdicts)]
            shared = _shared(group)
            rests = tuple(tuple(row[shared:]) for row in group)
            for verdict, rest in zip(verdicts, rests, strict=True):
                if not rest:
                    raise RewardError(
                        f"{self._guard.name}: the tokens of the verdict {verdict!r} open another verdict's, "
                        "allowed are verdicts that differ at some token",
                        hint="write the verdicts out up to where they differ, for example with their line's end",
                    )
            found.append(Asked(tuple(group[0][:shared]), rests, is_cut=False))
        return found

    def _shortened(self, item: Judged) -> Asked:
        """The prompt with its turns cut, the first from their beginning, at last the judged one from its end."""
        turns = self._turns(item)
        tokenizer = self._guard.tokenizer
        while True:
            [asked] = self._encode([self._prompt(turns)])
            excess = len(asked.ids) + max(map(len, asked.verdicts)) - self._guard.context
            if excess <= 0:
                return Asked(asked.ids, asked.verdicts, is_cut=True)
            turn = next((each for each in turns[:-1] if each["content"]), turns[-1])
            spans = tokenizer(
                turn["content"], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )["offset_mapping"]
            if not spans:
                raise RewardError(
                    f"{self._guard.name}: its prompt alone exceeds its context of {self._guard.context} tokens",
                    hint="use a guard with a longer context, or a shorter template or policy",
                )
            if excess >= len(spans):
                turn["content"] = ""
            elif turn is turns[-1]:
                turn["content"] = turn["content"][: spans[-excess][0]]
            else:
                turn["content"] = turn["content"][spans[excess][0] :]


_ENVIRONMENT = ImmutableSandboxedEnvironment()


def _shared(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with alike."""
    first, last = min(rows), max(rows)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return shared
