"""Export: an ordinary Hugging Face directory whose chat template takes the dials. A run in, a model out.

Either the whole model, any adapters merged, or the adapter alone in PEFT's layout, for a server that holds the base.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rheostat.card import CARD, card_values
from rheostat.config import Dtype, RunConfig
from rheostat.control_template import dialled_template
from rheostat.dial_tables import card_lines
from rheostat.dialled import adapter_of, tuned_model
from rheostat.errors import InputError, ModelError, StageMissing, StorageError
from rheostat.figures import evaluations_of, figures
from rheostat.measured import FILE, measured
from rheostat.model_card import PICTURES, Facts, model_card
from rheostat.model_files import quiet, resolve
from rheostat.models import load_policy
from rheostat.recipe import load_config
from rheostat.rundir import RunDirectory, environment
from rheostat.scoring import OWN
from rheostat.storage import read_object, require_object, storage_errors, write_bytes, write_json, write_text
from rheostat.trainings import Training

Form = Literal["merge", "adapter"]
_TOKENIZER = "tokenizer_config.json"
_ADAPTER_CONFIG = "adapter_config.json"


def export(
    run: Path,
    to: Path,
    *,
    method: str | None = None,
    form: Form = "merge",
    dtype: Dtype | None = None,
    floors: Mapping[str, float] | None = None,
    defaults: Mapping[str, float] | None = None,
    calibrated: bool = False,
) -> Path:
    """Write a tuned model of `run` into the folder `to`, which must be empty or absent.

    Weights (in `dtype`, or the recipe's; of form `adapter` the adapter's alone), tokenizer, the chat template with
    dials, `rheostat.json` (levels, floors, calibration, versions), `measured.json` and a model card with the measured
    control. What is asked of a dial below its level in `floors` is raised to it, by the template as by `rheostat.load`;
    a dial that is not given stands at its level in `defaults`, or at its highest. With `calibrated` the dials go by the
    maps that the evaluation fitted. Raises `InputError`, `DialError`, `StageMissing`, `ModelError`, `StorageError`.
    """
    if form == "adapter" and dtype is not None:
        raise InputError(
            f"--dtype: got {dtype} with --adapter, whose weights stay as they were trained",
            hint="leave out one of the two",
        )
    with RunDirectory.open(run, read_only=True) as directory:
        config = load_config(directory.config_path)
        model, name = tuned_model(directory, method)
        found = figures(directory, config) if evaluations_of(directory) else {}
        own_figures = measured(directory, config, found, name) if found else None
        facts = _facts(directory, config, name, adapter_of(model), found.get("evaluations", {}))
        calibration = require_object(directory.finished("score").path / "calibration.json")
        pictures = _pictures(directory)
    maps = _dial_maps(found, name) if calibrated else {}
    thresholds = {dial: tuple(each["thresholds"]) for dial, each in maps.items()}
    trained, floors = replace(config.control_format, thresholds=thresholds), dict(floors or {})
    control_format = trained.with_floors(floors).with_defaults(defaults or {})
    adapter = adapter_of(model)
    if form == "adapter" and facts.adapter_rank is None:
        raise ModelError(
            f"--adapter: {name} was fully fine-tuned, it has no adapter",
            hint="leave out --adapter, or train with adapters (train.lora in the recipe)",
        )
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StorageError(f"{to} is not an empty folder", hint="give a new folder")
    adapter_alone = adapter if form == "adapter" else None
    template = _write_model(model, to, config, adapter=adapter_alone, dtype=dtype or config.dtype)
    for file, picture in pictures.items():
        write_bytes(to / file, picture)
    write_text(to / "chat_template.jinja", dialled_template(template, control_format, floors=floors))
    values = card_values(control_format, template, floors=floors, trained=trained)
    values |= {"calibration": calibration[OWN], "dial_maps": maps, "base": config.model, "method": name, "form": form}
    write_json(to / CARD, {**values, **environment()})
    card = model_card(facts, control_format, floors=floors, is_adapter=form == "adapter", pictures=list(pictures))
    write_text(to / "README.md", card + "".join(f"{line}\n" for line in card_lines(found, name)))
    if own_figures is not None:
        write_json(to / FILE, own_figures)
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


def _facts(
    run: RunDirectory, config: RunConfig, name: str, adapter: Path, measured: Mapping[str, Any]
) -> Facts:
    """What the run tells of the model: how it was made, and how well its dials were measured to work."""
    tuned = next(each for each in config.method_names if each.name == name)
    training = Training.of(tuned, config)
    has_examples = training.data.variant != "prompts"
    return Facts(
        method=name,
        config=config,
        measured={evaluation: methods[name] for evaluation, methods in measured.items()},
        prompts=run.finished("prompts").summary,
        distilled=run.finished(training.data.stage).summary if has_examples else None,
        trained=run.finished(training.stage).summary,
        adapter_rank=read_object(adapter / _ADAPTER_CONFIG).get("r"),
    )


def _base(config: RunConfig) -> str:
    """Where whoever loads an adapter finds the model that was tuned: an id, or the folder here."""
    where = Path(resolve(config.model))
    return str(where.resolve()) if where.is_dir() else config.model


def _pictures(run: RunDirectory) -> dict[str, bytes]:
    """The report's pictures of control, by file name; none where the report has not been made."""
    folder = run.path / "pictures"
    with storage_errors(folder):
        return {name: (folder / name).read_bytes() for name in PICTURES if (folder / name).is_file()}


def _write_model(model: Path, to: Path, config: RunConfig, *, adapter: Path | None, dtype: Dtype) -> str:
    """Weights and tokenizer into `to`; gives the tokenizer's chat template, without dials."""
    policy = load_policy(str(model.resolve()), dtype=dtype, device="cpu")
    tokenizer = policy.tokenizer
    template = tokenizer.chat_template
    assert isinstance(template, str), type(template)  # of several, a policy keeps the default
    with storage_errors(to), quiet():
        to.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(to)
        if adapter is None:
            policy.model.save_pretrained(to)
    # What a caller may have cut off a long prompt is its beginning: at its end stands the control.
    write_json(to / _TOKENIZER, {**require_object(to / _TOKENIZER), "truncation_side": "left"})
    if adapter is None:
        return template
    write_bytes(to / "adapter_model.safetensors", (adapter / "adapter_model.safetensors").read_bytes())
    values = require_object(adapter / _ADAPTER_CONFIG)
    values |= {"base_model_name_or_path": _base(config), "target_modules": sorted(values["target_modules"])}
    write_json(to / _ADAPTER_CONFIG, values)
    return template
