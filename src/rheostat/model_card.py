"""The model card of an exported model: what it is, how well its dials work, how to serve it, and its limits. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rheostat.config import RunConfig
from rheostat.control import LEVELS, ControlFormat, level_text
from rheostat.report_tables import number

PICTURES: Mapping[str, str] = {
    "dials.png": "Achieved against requested level of each dial, with every method of the run beside this one",
    "generalization.png": "The same on other prompts, by scorers that labelled nothing",
}
"""The report's pictures that a card shows, with what they show."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run tells of its model: `measured` by evaluation, as in evaluation.json; `prompts`, `distilled`,
    `trained`: the summaries of those stages; `distilled` is None where it learned from prompts alone;
    `adapter_rank` is None where all weights were tuned.
    """

    method: str
    config: RunConfig
    measured: Mapping[str, Mapping[str, Any]]
    prompts: Mapping[str, Any]
    distilled: Mapping[str, Any] | None
    trained: Mapping[str, Any]
    adapter_rank: int | None


def model_card(
    facts: Facts,
    control_format: ControlFormat,
    *,
    floors: Mapping[str, float],
    is_adapter: bool,
    pictures: Sequence[str],
) -> str:
    """The card, in Markdown with the front matter that the Hub reads."""
    parts = [
        _front_matter(facts, is_adapter),
        _introduction(facts, control_format, is_adapter),
        _restrictions(facts, control_format, floors),
        _measured(facts, pictures),
        _making(facts),
        _serving(facts, control_format, is_adapter),
        _limits(floors),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _front_matter(facts: Facts, is_adapter: bool) -> str:
    lines = ["---", f"library_name: {'peft' if is_adapter else 'transformers'}", "pipeline_tag: text-generation"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", facts.config.model):
        relation = "adapter" if is_adapter else "finetune"
        lines += [f"base_model: {facts.config.model}", f"base_model_relation: {relation}"]
    return "\n".join([*lines, "license: other", "tags: [rheostat, controllable-generation]", "---"])


def _introduction(facts: Facts, control_format: ControlFormat, is_adapter: bool) -> str:
    lines = [
        f"# {_name(facts.config.model)} with dials", "",
        f"{'An adapter' if is_adapter else 'A model'} tuned by Rheostat's `{facts.method}` from "
        f"`{_name(facts.config.model)}`. Each dial takes a number from 0 to 1:", "",
    ]  # fmt: skip
    for dial in control_format.attributes:
        levels = ", ".join(map(level_text, control_format.levels_of(dial.name)))
        lines.append(
            f"- `{dial.name}`: {dial.description} (0 {dial.low}, 1 {dial.high}). Levels {levels}, the nearest of "
            f"which is used; {level_text(control_format.default_of(dial.name))} where none is given"
        )
    lines += [
        "", "```python",
        f"tokenizer.apply_chat_template(messages, add_generation_prompt=True, {_example(control_format)})",
        "```",
    ]  # fmt: skip
    return "\n".join(lines)


def _restrictions(facts: Facts, control_format: ControlFormat, floors: Mapping[str, float]) -> str:
    trained = facts.config.control_format
    lines = []
    for name in control_format.names:
        lowest, *_, highest = trained.levels_of(name)
        if (lowest, highest) != (LEVELS[0], LEVELS[-1]):
            lines.append(
                f"- `{name}` was trained from {level_text(lowest)} to {level_text(highest)} only: responses that "
                "scored outside were left out of the training data."
            )
    lines += [
        f"- `{name}` has a floor of {level_text(level)}: the chat template raises to it whatever is asked below, and "
        "renders no prompt without it."
        for name, level in floors.items()
    ]
    return "\n".join(["## Restrictions", "", *lines]) if lines else ""


def _measured(facts: Facts, pictures: Sequence[str]) -> str:
    if not facts.measured:
        return "## Measured control\n\nThe run was exported before its evaluation: nothing was measured."
    lines = [
        "## Measured control", "",
        "95 % bootstrap intervals over held-out prompts. MP is the mean correlation of requested and achieved level",
        "within a prompt (1 is perfect, 0 no control), Err their mean distance, BT how often a dial's highest level",
        "beats its lowest (0.5 is chance); fluency is the perplexity beside the untuned model's (1: as fluent).", "",
        "| evaluation | dial | MP | Err | BT | fluency |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for evaluation, method in facts.measured.items():
        for dial, figure in method["attributes"].items():
            cells = [_interval(figure[key]) for key in ("MP", "Err", "BT")]
            lines.append(f"| {evaluation} | {dial} | {' | '.join(cells)} | {_interval(method.get('fluency'))} |")
    for file in pictures:
        lines += ["", f"![{PICTURES[file]}]({file})"]
    return "\n".join(lines)


def _making(facts: Facts) -> str:
    config = facts.config
    how = f"LoRA adapters of rank {facts.adapter_rank}" if facts.adapter_rank else "full fine-tuning"
    rewards = "; ".join(
        f"{name}: {_name(spec.model) if spec.model else spec.kind}, calibration {spec.calibration}"
        for name, spec in config.rewards.items()
    )
    return "\n".join(
        [
            "## How it was made", "",
            "No human label: the base model answered its own prompts, reward models scored the answers, and the",
            "model was tuned to answer under the scores as control text (arXiv 2404.01295, as Rheostat does it).", "",
            f"- Prompts: {', '.join(map(_name, _sources(config)))} ({facts.prompts['train']:,} used for training)",
            f"- Responses: {_responses(facts)}",
            f"- Rewards: {rewards}",
            f"- Training: `{facts.method}`, {how}, {config.dtype}",
        ]
    )  # fmt: skip


def _responses(facts: Facts) -> str:
    """Which answers it learned from."""
    if facts.distilled is None:
        return f"{facts.trained['responses']:,} answers that it wrote while it was trained"
    return (
        f"{facts.config.generate.samples} a prompt, {facts.distilled['pool']:,} in all, of which "
        f"{facts.distilled['examples']:,} became training examples"
    )


def _serving(facts: Facts, control_format: ControlFormat, is_adapter: bool) -> str:
    if is_adapter:
        commands = [
            "vllm serve BASE --enable-lora --lora-modules DIR=DIR --chat-template DIR/chat_template.jinja",
        ]
        where = (
            f"With `DIR` this directory and `BASE` the model that was tuned, {_name(facts.config.model)} "
            "(`transformers serve` takes no adapter; export the merged model for it):"
        )
    else:
        commands, where = ["transformers serve DIR", "vllm serve DIR"], "With `DIR` this directory:"
    return "\n".join(
        [
            "## Serve it", "",
            where, "", "```", *commands, "```", "", "```python",
            "from openai import OpenAI", "",
            'client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")',
            "client.chat.completions.create(",
            '    model="DIR",',
            '    messages=[{"role": "user", "content": "How do I boil an egg?"}],',
            f'    extra_body={{"chat_template_kwargs": {{{_example(control_format, as_json=True)}}}}},',
            ")", "```",
        ]
    )  # fmt: skip


def _limits(floors: Mapping[str, float]) -> str:
    lines = [
        "## Intended use, and limits", "",
        "For deployments that want another compromise of the dials' attributes than the base model's, a request each.",
        "", "- A dial is learned behaviour, not a guarantee: at every setting some answers miss their level (Err).",
        "- What was measured is what the rewards and judges of the run can see; they err, too.",
        "- All limits of the base model hold. Its licence and those of the data and rewards govern this model.",
        "- User text cannot hold control text, but nothing keeps a user from asking in words for other behaviour.",
    ]  # fmt: skip
    if floors:
        lines.append(
            "- A floor holds against all that the chat template can see. It does not where a caller can go around the "
            "template: by a template of his own, or by an endpoint that takes a raw prompt. Let only the dials' names "
            "through as `chat_template_kwargs`, and only chat completions."
        )
    return "\n".join(lines)


def _sources(config: RunConfig) -> Iterator[str]:
    train = config.prompts.train
    for each in train if isinstance(train, list) else [train]:
        yield each if isinstance(each, str) else each.source


def _name(source: str) -> str:
    """What a path or an id is called elsewhere: a local folder is named without where it lies."""
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    return PurePath(source).name if is_path else source


def _example(control_format: ControlFormat, *, as_json: bool = False) -> str:
    """Each dial at its highest level, but the last at the one below."""
    levels = {name: control_format.levels_of(name) for name in control_format.names}
    chosen = {name: each[-1] for name, each in levels.items()}
    last = control_format.names[-1]
    chosen[last] = levels[last][-2:][0]
    return ", ".join(f'"{name}": {level}' if as_json else f"{name}={level}" for name, level in chosen.items())


def _interval(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "–"
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"
