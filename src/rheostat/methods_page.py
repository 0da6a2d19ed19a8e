"""docs/methods.md: the grammar of a method's name, every objective and every method, read off the plug-ins on disk."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from rheostat import plugins
from rheostat.method_name import MethodName
from rheostat.method_suffixes import SUFFIXES, Suffix
from rheostat.plugins import Needs

_DIAL = "DIAL"
_HEAD = """\
What a recipe compares is a list of names, `methods: [base, prompting, exmate, dpo+safety]`; each is evaluated, and
stands in the report as a curve where it has a dial, else as a point.

```
NAME = METHOD | OBJECTIVE[+SUFFIX]...
```

A METHOD, a file in `methods/`, takes no suffix. An OBJECTIVE, a file in `objectives/`, is trained, and its model
answers. What either needs beside (experts, the model that rewards tokens) is trained without being named, once for all
that need it. Formulas, sources and what is ours stand at the head of each file; the whole: [method.md](method.md); how
they compare: [bench.md](bench.md).

Options of an objective stand under `train.objectives.NAME`, other training options for it under `train.overrides.NAME`,
options of a method under `method_options.NAME`."""
_ONLINE = """\
An objective that learns from prompts ({objectives}) answers them while it trains, by TRL's trainer, which is an extra:
`pip install 'rheostat[rlhf]'`; `rheostat doctor` says whether it is there. It trains in one process."""


def methods_page() -> str:
    """The page below its generated mark."""
    names = plugins.available("objectives")
    online = ", ".join(f"`{name}`" for name in names if plugins.needs(name).rows == "prompts")
    objectives: list[tuple[plugins.Kind, str]] = [("objectives", name) for name in names]
    free = plugins.named_methods()
    methods: list[tuple[plugins.Kind, str]] = [("methods", name) for name in free]
    parts = [
        "# Methods",
        _HEAD,
        *([_ONLINE.format(objectives=online)] if online else []),
        "## Suffixes",
        "Each once, in any order; one that says nothing to what the objective learns from is refused.",
        _table(("suffix", "what it says", "to which objectives"), map(_suffix, SUFFIXES)),
        "## Objectives",
        _table(
            ("name", "what it is", "learns from", "dial", "options", "trainings before it"),
            map(_objective, names),
        ),
        *_parts(names),
        *_meanings(objectives),
        "## Methods without a training of their own",
        f"`{_DIAL}` stands for each of the run's dials: one training a dial.",
        _table(("name", "what it is", "dial", "options", "trainings that it is made of"), map(_method, free)),
        *_meanings(methods),
    ]
    return "\n\n".join(parts) + "\n"


def _suffix(suffix: Suffix) -> tuple[str, ...]:
    names = plugins.available("objectives")
    whole = [name for name in names if not plugins.needs(name).experts]
    taking = [name for name in whole if suffix.applies(plugins.needs(name))]
    whom = "all" if taking == whole else ", ".join(f"`{name}`" for name in taking)
    return f"`{suffix.form}`", suffix.meaning, whom


def _objective(name: str) -> tuple[str, ...]:
    module, needs = plugins.load("objectives", name), plugins.needs(name)
    return (
        f"`{name}`",
        _first_line(module),
        _learned_from(needs),
        "yes" if needs.control else "no",
        _options(module.OPTIONS),
        ", ".join(f"`{each}`" for each in _before(needs)) or "none",
    )


def _method(name: str) -> tuple[str, ...]:
    module = plugins.load("methods", name)
    models: Mapping[str, str] = module.models([_DIAL])
    return (
        f"`{name}`",
        _first_line(module),
        "yes" if module.HAS_DIAL else "no",
        _options(module.OPTIONS),
        ", ".join(_with_what_it_needs(each) for each in models.values()) or "none",
    )


def _first_line(module: Any) -> str:
    assert module.__doc__, module
    line: str = module.__doc__.strip().partition("\n")[0]
    return line


def _learned_from(needs: Needs) -> str:
    """In words: the rows, which of them, and what else it reads."""
    told: list[str] = [needs.rows]
    if needs.counterfactual:
        told.append("also under an untreated control")
    if needs.ordered_by is not None:
        told.append(f"chosen by {needs.ordered_by}")
    if needs.keeps is not None:
        told.append("a selection of them by their scores")
    if needs.attributes:
        told.append(f"needs rewards for {' and '.join(needs.attributes)}")
    if needs.adapter is not None:
        told.append(f"trains an adapter of rank {needs.adapter.rank} whatever the model's size")
    return "; ".join(told)


def _parts(objectives: Sequence[str]) -> Iterator[str]:
    """Which objectives train no whole model, so that they are no methods, and what uses them."""
    for name in objectives:
        if plugins.needs(name).experts:
            users = ", ".join(f"`{method}`" for method in plugins.methods_made_of(name, [_DIAL]))
            yield f"`{name}` trains no whole model and is no name for `methods`; it is trained for {users}."


def _before(needs: Needs) -> list[str]:
    """Names of the trainings whose models it needs."""
    rewarding = [] if needs.token_rewards_of is None else [needs.token_rewards_of]
    return [*rewarding, *needs.experts.values()]


def _with_what_it_needs(training: str) -> str:
    objective = MethodName.parse(training.removesuffix(f"+{_DIAL}")).objective
    assert objective is not None, training
    further = _before(plugins.needs(objective))
    return f"`{training}`" + (f" (after {' and '.join(f'`{each}`' for each in further)})" if further else "")


def _options(options: type[Any]) -> str:
    fields = dataclasses.fields(options)
    return ", ".join(f"`{each.name}: {_default(each)}`" for each in fields) or "none"


def _default(field: "dataclasses.Field[Any]") -> str:
    """As YAML has it."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    assert value is not dataclasses.MISSING, field.name
    return yaml.safe_dump(value, default_flow_style=True).partition("\n")[0]


def _meanings(named: Sequence[tuple[plugins.Kind, str]]) -> Iterator[str]:
    """What the options mean, a line a plug-in that has any."""
    lines = []
    for kind, name in named:
        options = plugins.load(kind, name).OPTIONS
        if dataclasses.fields(options):
            lines.append(f"- `{name}`: {' '.join(options.__doc__.split())}")
    if lines:
        yield "What the options mean:\n\n" + "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
