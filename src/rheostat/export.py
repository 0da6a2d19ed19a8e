"""Export: an ordinary Hugging Face directory whose chat template takes the dials. A run in, a model out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rheostat.config import Dtype, RunConfig
from rheostat.control_template import dialled_template
from rheostat.dial_tables import card_lines
from rheostat.dialled import CARD, tuned_model
from rheostat.errors import StageMissing, StorageError
from rheostat.figures import evaluations_of, figures
from rheostat.models import load_policy, quiet
from rheostat.recipe import load_config
from rheostat.rundir import RunDirectory, environment
from rheostat.scoring import OWN
from rheostat.storage import require_object, storage_errors, write_json, write_text

SCHEMA = 2


def export(
    run: Path,
    to: Path,
    *,
    method: str | None = None,
    dtype: Dtype | None = None,
    calibrated: bool = False,
) -> Path:
    """Write a tuned model of `run` into the folder `to`, which must be empty or absent.

    Weights (in `dtype`, or the recipe's), tokenizer, the chat template with dials, `rheostat.json` (levels,
    calibration, versions) and a model card with the measured control. With `calibrated` its dials go by the maps that
    the evaluation fitted. Raises `StageMissing`, `ModelError`, `StorageError`.
    """
    with RunDirectory.open(run, read_only=True) as directory:
        config = load_config(directory.config_path)
        model, name = tuned_model(directory, method)
        measured = figures(directory, config) if evaluations_of(directory) else {}
        calibration = require_object(directory.finished("score").path / "calibration.json")
    maps = _dial_maps(measured, name) if calibrated else {}
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StorageError(f"{to} is not an empty folder", hint="give a new folder")
    policy = load_policy(str(model.resolve()), dtype=dtype or config.dtype, device="cpu")
    with storage_errors(to), quiet():
        to.mkdir(parents=True, exist_ok=True)
        policy.model.save_pretrained(to)
        policy.tokenizer.save_pretrained(to)
    template = policy.tokenizer.chat_template
    assert isinstance(template, str), type(template)
    control_format = replace(
        config.control_format, thresholds={dial: each["thresholds"] for dial, each in maps.items()}
    )
    write_text(to / "chat_template.jinja", dialled_template(template, control_format))
    write_json(
        to / CARD,
        {
            "schema": SCHEMA,
            "attributes": list(control_format.names),
            "words": {each.name: each.word for each in control_format.attributes},
            "levels": {name: list(control_format.levels_of(name)) for name in control_format.names},
            "calibration": calibration[OWN],
            "dial_maps": maps,
            "chat_template": template,
            "base": config.model,
            "method": name,
            **environment(),
        },
    )
    card = model_card(config, name, measured.get("evaluations", {}))
    write_text(to / "README.md", card + "".join(f"{line}\n" for line in card_lines(measured, name)))
    return to


def _dial_maps(measured: Mapping[str, Any], name: str) -> dict[str, dict[str, list[float]]]:
    """The map of each dial of a method, off the figures; raises `StageMissing` where none was fitted."""
    found = measured.get("calibrated", {}).get(name)
    if found is None:
        raise StageMissing(
            f"the dials of {name} have not been calibrated in this run",
            hint="run `rheostat evaluate` on it with prompts.calibration_limit above 0 and prompts left for it",
        )
    return {dial: each["map"] for dial, each in found["dials"].items()}


def model_card(config: RunConfig, name: str, measured: dict[str, Any]) -> str:
    """The model card: what the dials are, how to turn them, and how well they were measured to work."""
    dials = config.control_format.attributes
    example = ", ".join(f"{dial.name}={level}" for dial, level in zip(dials, (1.0, 0.75), strict=False))
    lines = [
        "---", "library_name: transformers", "tags: [rheostat, controllable-generation]", "---", "",
        f"# {config.model} with dials", "",
        f"Tuned by Rheostat's `{name}` from {config.model}. Each dial takes a number from 0 to 1:", "",
        *(f"- `{dial.name}`: {dial.description} (0 {dial.low}, 1 {dial.high}; default 1)" for dial in dials), "",
        "```python",
        f"tokenizer.apply_chat_template(messages, add_generation_prompt=True, {example})",
        "```", "",
        "Over an OpenAI-style API: `extra_body={\"chat_template_kwargs\": {…}}` with the same names.", "",
        "## Measured control", "",
        "A dial is learned behaviour, not a guarantee. 95 % bootstrap intervals over held-out prompts; MP is the",
        "mean correlation of requested and achieved level within a prompt, BT how often the highest level beats",
        "the lowest.", "",
        "| evaluation | dial | MP | Err | BT |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for evaluation, methods in measured.items():
        for dial, figure in methods[name]["attributes"].items():
            cells = [
                f"{figure[key]['value']:.2f} [{figure[key]['low']:.2f}, {figure[key]['high']:.2f}]"
                for key in ("MP", "Err", "BT")
            ]
            lines.append(f"| {evaluation} | {dial} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
