"""A patch of weights as a folder: made from a run, put into a copy of a model directory, and taken out again.

`patch.safetensors` holds of each tensor the places that are changed, the change there and the base's own values;
`patch.json` says how many weights of which tensors, how the patch was made and from which base. Taking it out puts back
the base's own values: to the last bit.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rheostat.errors import CorruptShard, InputError, ModelError, StorageError
from rheostat.methods._patch_options import ENHANCING, MITIGATING, TRAININGS, PatchOptions
from rheostat.model_files import first_line, identity, locate
from rheostat.models import recipe_policy
from rheostat.patches import ROLES, patches_of
from rheostat.recipe import load_config, method_options
from rheostat.rundir import RunDirectory, environment
from rheostat.storage import TEMPORARY, read_object, storage_errors, write_bytes, write_json
from rheostat.trainings import training, trainings
from rheostat.weight_mixing import Delta, parameters_of

CARD, WEIGHTS = "patch.json", "patch.safetensors"


@dataclass(frozen=True, slots=True)
class PatchedTensor:
    """A patch of one tensor: flat `places`, the `change` there in float32, the base's values `before`; all `(n,)`."""

    places: Tensor
    change: Tensor
    before: Tensor

    @property
    def after(self) -> Tensor:
        """The patched values, in the base's type."""
        return (self.before.float() + self.change).to(self.before.dtype)

    @classmethod
    def of(cls, base: Tensor, parts: Sequence[tuple[float, Delta]]) -> "PatchedTensor":
        """Of patches of disjoint places, under their coefficients."""
        found = [(delta.places, coefficient * delta.values) for coefficient, delta in parts if delta.places is not None]
        places = torch.cat([each for each, _ in found])
        order = places.argsort()
        change = torch.cat([each for _, each in found])[order]
        return cls(places[order], change, base.detach().cpu().flatten()[places[order]])


def is_patch(folder: Path) -> bool:
    """Whether a folder holds a patch."""
    return (folder / CARD).is_file()


def make_patch(run: Path, to: Path) -> dict[str, Any]:
    """Write the patch of a run, whose trainings by ascent and descent have finished, into the folder `to`; its card.

    By `method_options.safepatching` of its recipe. Raises `InputError` where that trains no patch, `StageMissing`,
    `ModelError`, `StorageError`.
    """
    _refuse_filled(to)
    with RunDirectory.open(run, read_only=True) as directory:
        config = load_config(directory.config_path)
        wanted = {training(name, config) for name in TRAININGS.values()}
        if not wanted <= set(trainings(config)):
            raise InputError(
                f"{run}: got the methods {', '.join(config.methods)}, a patch is made of what safepatching has trained",
                hint="add safepatching to `methods` and run `rheostat run RECIPE --out RUN`; what has finished is kept",
            )
        options: PatchOptions = method_options(config, "safepatching")
        stages = {role: directory.finished(training(name, config).stage) for role, name in TRAININGS.items()}
        base = recipe_policy(config)
        patches = patches_of(
            base,
            lambda role: recipe_policy(config, str((stages[role].path / "model").resolve())),
            lambda role: stages[role].path,
            options,
        )
    weights = parameters_of(base)
    coefficients = {ENHANCING: options.alpha, MITIGATING: options.beta}
    tensors: dict[str, PatchedTensor] = {}
    for name, weight in weights.items():
        parts = [(coefficients[role], patches[role][name]) for role in ROLES if name in patches[role]]
        if applied := [(coefficient, delta) for coefficient, delta in parts if coefficient]:
            tensors[name] = PatchedTensor.of(weight, applied)
    counts = {name: {"weights": weight.numel()} for name, weight in weights.items()}
    for role in ROLES:
        for name, delta in patches[role].items() if coefficients[role] else ():
            counts[name][role] = delta.values.numel()
    card = {
        "kind": "SafePatching",
        "model": config.model,
        "identity": identity(config.model),
        "trainings": {role: stage.fingerprint for role, stage in stages.items()},
        "options": asdict(options),
        "tensors": counts,
        **environment(),
    }
    write_patch(to, tensors, card)
    return card


def write_patch(to: Path, tensors: Mapping[str, PatchedTensor], card: Mapping[str, Any]) -> None:
    """A patch's two files. Raises `StorageError`."""
    with storage_errors(to):
        to.mkdir(parents=True, exist_ok=True)
    flat = {f"{name}/{part}": each for name, tensor in tensors.items() for part, each in _parts(tensor).items()}
    write_bytes(to / WEIGHTS, safetensors.torch.save(flat))
    write_json(to / CARD, card)


def _parts(tensor: PatchedTensor) -> dict[str, Tensor]:
    return {"places": tensor.places, "change": tensor.change, "before": tensor.before}


def read_patch(folder: Path) -> dict[str, PatchedTensor]:
    """The patch of each tensor, by its name. Raises `CorruptShard`."""
    try:
        flat = safetensors.torch.load_file(folder / WEIGHTS)
        names = dict.fromkeys(key.rpartition("/")[0] for key in flat)
        found = {
            name: PatchedTensor(flat[f"{name}/places"], flat[f"{name}/change"], flat[f"{name}/before"])
            for name in names
        }
        for name, each in found.items():
            if each.places.dtype != torch.int64 or not len(each.places) == each.change.numel() == each.before.numel():
                raise ValueError(f"{name}: got {each.places.dtype} places of unlike number")
            if int(each.places.min()) < 0:
                raise ValueError(f"{name}: got a place below 0")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _corrupt(folder / WEIGHTS, first_line(error)) from error
    return found


def read_card(folder: Path) -> dict[str, Any]:
    """What `patch.json` says. Raises `CorruptShard`."""
    card = read_object(folder / CARD)
    named = {"kind": str, "model": str, "options": dict, "tensors": dict}
    if wrong := [key for key, kind in named.items() if not isinstance(card.get(key), kind) or not card[key]]:
        raise _corrupt(folder / CARD, f"got no {' and no '.join(wrong)} of a patch")
    for name, counts in card["tensors"].items():
        if not isinstance(counts, dict) or not _is_count(counts.get("weights"), least=1):
            raise _corrupt(folder / CARD, f"tensors.{name} got no number of weights")
        if not all(_is_count(counts.get(role, 0)) for role in ROLES):
            raise _corrupt(folder / CARD, f"tensors.{name} got no number of changes")
    if any(not isinstance(each, int | float) for each in card["options"].values()):
        raise _corrupt(folder / CARD, "got options that are no numbers")
    return card


def _is_count(value: object, *, least: int = 0) -> bool:
    return isinstance(value, int) and value >= least


def _corrupt(path: Path, reason: str) -> CorruptShard:
    return CorruptShard(f"{path} is corrupt: {reason}", hint="make the patch again, with `rheostat patch RUN --to DIR`")


@dataclass(frozen=True, slots=True)
class Applied:
    """How many weights a patch was to change, and how many of them kept their value, the change lost in rounding."""

    changed: int
    lost: int


def apply_patch(patch: Path, model: str, to: Path, *, revert: bool = False) -> Applied:
    """Copy the model directory `model` to `to` with a patch put into its weights, or with `revert` taken out.

    Every place that is changed must hold what the patch expects, bit by bit: the base's value, or the patched one.
    Weights stored in fewer bits than the run computed in get their patched values rounded to their own type.
    Raises `ModelError` where a place holds something else, `InputError` where `to` lies in `model`, `StorageError`
    where `to` is filled, `CorruptShard`.
    """
    _refuse_filled(to)
    tensors = read_patch(patch)
    where, is_local = locate(model)
    if not is_local:
        raise ModelError(f"{model}: got an id, allowed is a folder", hint="download it first, with `hf download`")
    if to.resolve().is_relative_to(Path(where).resolve()):
        raise InputError(
            f"--to: got {to}, which is inside the model {model}, allowed is a folder elsewhere",
            hint="the model stays as it is; its edited copy goes beside it",
        )
    aside = to.with_name(f"{to.name}{TEMPORARY}patch")
    with storage_errors(to):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(Path(where), aside)
    try:
        lost: dict[str, int] = {}
        for file in sorted(aside.glob("*.safetensors")):
            lost |= _edit(file, tensors, model, revert=revert)
        if missing := tensors.keys() - lost.keys():
            raise ModelError(
                f"{model}: its files have no tensor {min(missing)}",
                hint=f"give the model that the patch was made from: {read_card(patch)['model']}",
            )
        with storage_errors(to):
            if to.is_dir():
                to.rmdir()
            aside.rename(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Applied(sum(each.places.numel() for each in tensors.values()), sum(lost.values()))


def _edit(file: Path, tensors: Mapping[str, PatchedTensor], model: str, *, revert: bool) -> dict[str, int]:
    """Edits the tensors of one file that are patched; how many changes of each were lost in rounding."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = sorted(set(opened.keys()) & tensors.keys())
            metadata = opened.metadata()
        whole: dict[str, Tensor] = safetensors.torch.load_file(file) if names else {}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{model}: cannot read its {file.name}: {first_line(error)}", hint="download or export the model again"
        ) from error
    lost = {}
    for name in names:
        patched, weight = tensors[name], whole[name]
        before, after = patched.before.to(weight.dtype), patched.after.to(weight.dtype)
        if not torch.equal(before.to(patched.before.dtype), patched.before):
            raise ModelError(
                f"{model}: {name} is {weight.dtype}, too short for the base's values in {patched.before.dtype}",
                hint="give the patch's own base model; another would not come back to the last bit",
            )
        flat = weight.flatten()
        expected = after if revert else before
        if len(flat) <= int(patched.places.max()) or not torch.equal(flat[patched.places], expected):
            raise ModelError(
                f"{model}: {name} does not hold what the patch {'has put there' if revert else 'was made from'}",
                hint="take out only what was put in with this patch" if revert else "give the patch's own base model",
            )
        flat[patched.places] = before if revert else after
        whole[name] = flat.view(weight.shape)
        lost[name] = int((before == after).sum())
    write_bytes(file, safetensors.torch.save(whole, metadata=metadata))
    return lost


def _refuse_filled(to: Path) -> None:
    """Raises `StorageError` where a folder to write has something in it."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StorageError(f"{to} is not an empty folder", hint="give a new folder")
