"""SafePatching: masks by hand and by law, importance by a slow twin, the whole thing through the command line."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from rheostat import cli, plugins
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import RunConfig
from rheostat.errors import CorruptShard, InputError, ModelError, StageMissing, StorageError
from rheostat.fine_tuning import fine_tune
from rheostat.methods import safepatching, safepatching_dials
from rheostat.model_files import identity, resolve
from rheostat.models import Policy, load_policy
from rheostat.objectives import ascent, descent
from rheostat.patch_files import PatchedTensor, apply_patch, read_card, read_patch, write_patch
from rheostat.patch_tables import by_layer
from rheostat.patches import ROLES, patches_of
from rheostat.patching import difference_masks, importance, masked_delta, most_important, retained
from rheostat.plugins import LogProbabilities, ObjectiveInputs
from rheostat.recipe import load_config, to_yaml
from rheostat.records import Example, Message
from rheostat.rundir import RunDirectory
from rheostat.weight_importance import read_importance, weight_importance, write_importance
from rheostat.weight_mixing import WeightMixer, parameters_of

pytestmark = pytest.mark.usefixtures("one_thread")
SIX = st.lists(st.integers(0, 5), min_size=6, max_size=6)
SHARE = st.floats(0, 1)


def matrix(*values: float) -> Tensor:
    """Two rows of three."""
    return torch.tensor(values, dtype=torch.float32).view(2, 3)


def test_a_patch_by_hand() -> None:
    """The whole formula on a 2×3 matrix, a = b = ½, p = 1, α = 2, β = 3.

    S_SE tops at 6 5 4 / _ _ _, S_OS at _ 6 _ / 5 4 _: both want the second place, which neither gets. P_SE is −1 all
    over and P_OS +1, so θ0 = 1 2 3 / 4 5 6 becomes −1 2 1 / 7 8 6.
    """
    masks = difference_masks(
        matrix(6, 5, 4, 3, 2, 1), matrix(1, 6, 2, 5, 4, 3), enhancing_share=0.5, mitigating_share=0.5
    )
    assert masks.enhancing.tolist() == [[True, False, True], [False, False, False]]
    assert masks.mitigating.tolist() == [[False, False, False], [True, True, False]]
    base = matrix(1, 2, 3, 4, 5, 6)
    enhancing, mitigating = (
        masked_delta(base, base + change, mask) for change, mask in ((-1, masks.enhancing), (1, masks.mitigating))
    )
    assert enhancing.places is not None and enhancing.places.tolist() == [0, 2]
    assert enhancing.values.tolist() == [-1, -1]
    assert mitigating.added(enhancing.added(base, 2), 3).tolist() == [[-1, 2, 1], [7, 8, 6]]
    both = PatchedTensor.of(base, [(2, enhancing), (3, mitigating)])
    assert both.places.tolist() == [0, 2, 3, 4]
    assert both.before.tolist() == [1, 3, 4, 5] and both.after.tolist() == [-1, 1, 7, 8]


def test_importance_by_hand() -> None:
    """|w · g|: the sign of neither counts, a weight of 0 and a gradient of 0 do not matter."""
    found = importance(matrix(-2, 2, 0, 1, 3, -1), matrix(0.5, -0.5, 9, 0, 1, -1))
    assert found.tolist() == [[1, 1, 0], [0, 3, 1]]


def test_the_most_important_places_are_the_earlier_of_equal_ones() -> None:
    assert most_important(matrix(5, 1, 2, 5, 0, 3), 0.5).tolist() == [[True, False, False], [True, False, True]]
    assert most_important(matrix(1, 1, 1, 1, 1, 1), 1 / 3).flatten().tolist() == [True, True, *[False] * 4]


@given(SIX, SIX, SHARE, SHARE)
@settings(max_examples=60, deadline=None)
def test_masks_are_disjoint_and_are_what_sets_say(ours: list[int], theirs: list[int], a: float, b: float) -> None:
    """Slow twin: Python's sets of places, sorted by importance, then by place."""

    def top(scores: list[int], share: float) -> set[int]:
        return set(sorted(range(6), key=lambda place: (-scores[place], place))[: round(share * 6)])

    masks = difference_masks(matrix(*ours), matrix(*theirs), enhancing_share=a, mitigating_share=b)
    assert not (masks.enhancing & masks.mitigating).any()
    found = [set(mask.flatten().nonzero().squeeze(-1).tolist()) for mask in (masks.enhancing, masks.mitigating)]
    assert found == [top(ours, a) - top(theirs, b), top(theirs, b) - top(ours, a)]


@given(st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_retention_keeps_its_share_and_each_tensor_its_own(rate: float) -> None:
    one, again, other = (retained((100, 100), rate, seed=3, label=label) for label in ("x", "x", "y"))
    assert torch.equal(one, again)
    assert one.float().mean().item() == pytest.approx(rate, abs=5 * math.sqrt(0.25 / 10_000))
    if 0.1 < rate < 0.9:
        assert not torch.equal(one, other)
        assert (one & other).float().mean().item() == pytest.approx(rate**2, abs=0.03)


def inputs(*rows: tuple[float, ...]) -> ObjectiveInputs:
    return ObjectiveInputs(LogProbabilities(torch.tensor(rows).log(), torch.ones(len(rows), len(rows[0]))))


def test_ascent_and_descent_by_hand() -> None:
    """½ and ¼: ±(ln 2 + ln 4) / 2 = ±1.0397; both count the NLL itself for the log."""
    both = [
        ascent.loss(inputs((0.5, 0.25)), ascent.OPTIONS()),
        descent.loss(inputs((0.5, 0.25)), descent.OPTIONS()),
    ]
    assert [each.total.item() for each in both] == pytest.approx([-1.5 * math.log(2), 1.5 * math.log(2)])
    assert [each.parts["nll"].item() for each in both] == pytest.approx([1.5 * math.log(2)] * 2)


def test_harmful_are_the_examples_of_low_safety() -> None:
    found = [ascent.is_harmful({"safety": level, "helpfulness": 0.0}) for level in (0.0, 0.25, 0.26)]
    assert found == [True, True, False]
    for module in (ascent, descent):
        assert module.NEEDS.keeps is ascent.is_harmful and not module.NEEDS.control and module.NEEDS.importance


def made(count: int = 6) -> list[Example]:
    return [
        Example(
            f"p{place}",
            (Message("user", f"How do I boil {place} eggs?"),),
            {"helpfulness": 1.0, "safety": 0.0},
            "First, boil the water. " * (1 + place % 3) + "Then add the eggs.",
            {"helpfulness": 0.9, "safety": 0.1},
            "stop",
        )
        for place in range(count)
    ]


def config(**train: object) -> RunConfig:
    values = {"batch_size": 3, "steps": 4, "learning_rate": 1e-3, **train}
    return load_config("pocket", [f"train.{key}={value}" for key, value in values.items()])


def test_importance_is_that_of_single_backward_passes() -> None:
    """Slow twin: the mean NLL of all examples, each alone through the model, by autograd; batches of equal size."""
    policy = load_policy("pocket:chat")
    before = {name: each.detach().clone() for name, each in policy.model.named_parameters()}
    found = weight_importance(policy, made(), config(), objective=descent, options=descent.OPTIONS())
    total = torch.zeros(())
    for example in made():
        prompt = encode_prompt(policy.tokenizer, example.messages)
        ids = encode_response(policy.tokenizer, example.response, end_id=policy.end_ids[0])
        logits = policy.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        picked = [logits[len(prompt) - 1 + at, token] for at, token in enumerate(ids)]
        total = total - torch.stack(picked).mean() / 6
    gradients = torch.autograd.grad(total, list(policy.model.parameters()))
    for (name, parameter), gradient in zip(policy.model.named_parameters(), gradients, strict=True):
        slow = (parameter.detach() * gradient).abs()
        torch.testing.assert_close(found[name], slow, atol=1e-6, rtol=1e-3)
        assert torch.equal(parameter, before[name])
    assert max(float(each.max()) for each in found.values()) > 1e-4


def test_ascent_raises_and_descent_lowers_the_nll(tmp_path: Path) -> None:
    for objective, rises in (("ascent", True), ("descent", False)):
        policy, folder = load_policy("pocket:chat"), tmp_path / objective
        figures = fine_tune(policy, made(), objective=objective, config=config(steps=20), checkpoints=folder)
        log = [entry["nll"] for entry in figures["log"]]
        assert (log[-1] > log[0]) is rises, log


def test_training_on_nothing_harmful_is_refused(tmp_path: Path) -> None:
    safe = [replace(each, scores={"safety": 1.0}) for each in made()]
    with pytest.raises(InputError, match="got 6 rows, of which the objective wants none"):
        fine_tune(load_policy("pocket:chat"), safe, objective="ascent", config=config(), checkpoints=tmp_path)


@pytest.fixture
def patched(tmp_path: Path) -> tuple[Policy, dict[str, Path], dict[str, Policy]]:
    """A base, a folder with random importance for each role, and a randomly shaken model for each."""
    base = load_policy("pocket:chat")
    folders, tuned = {}, {}
    for place, role in enumerate(ROLES):
        tuned[role] = load_policy("pocket:chat")
        generator = torch.Generator().manual_seed(place)
        folders[role] = tmp_path / role
        folders[role].mkdir()
        scores = {}
        with torch.no_grad():
            for name, each in tuned[role].model.named_parameters():
                each.add_(torch.randn(each.shape, generator=generator) * 0.01)
                scores[name] = torch.rand(each.shape, generator=generator)
        write_importance(folders[role], scores)
    return base, folders, tuned


def test_patches_touch_disjoint_places_in_their_expected_number(
    patched: tuple[Policy, dict[str, Path], dict[str, Policy]],
) -> None:
    """Random importance, a = ½, b = ¼, p = 0.4: of n weights 0.4·½·¾·n and 0.4·¼·½·n places, within five deviations."""
    base, folders, tuned = patched
    options = safepatching.OPTIONS(retention=0.4, enhancing_share=0.5, mitigating_share=0.25)
    found = patches_of(base, tuned.__getitem__, folders.__getitem__, options)
    weights = sum(each.numel() for each in parameters_of(base).values())
    for role, expected in zip(ROLES, (0.15, 0.05), strict=True):
        share = sum(each.values.numel() for each in found[role].values()) / weights
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / weights))
    for name, before in parameters_of(base).items():
        one, other = (found[role].get(name) for role in ROLES)
        if one is not None and other is not None and one.places is not None and other.places is not None:
            assert not set(one.places.tolist()) & set(other.places.tolist())
        if one is not None and one.places is not None:
            change = (parameters_of(tuned["enhancing"])[name] - before).flatten()[one.places]
            torch.testing.assert_close(one.values, change.detach(), atol=0, rtol=0)


def test_alpha_and_beta_of_0_are_the_base(patched: tuple[Policy, dict[str, Path], dict[str, Policy]]) -> None:
    base, folders, tuned = patched
    before = {name: each.detach().clone() for name, each in parameters_of(base).items()}
    mixer = WeightMixer(base, patches_of(base, tuned.__getitem__, folders.__getitem__, safepatching.OPTIONS()))
    with mixer.mixed({"enhancing": 0.0, "mitigating": 0.0}):
        assert all(torch.equal(each, before[name]) for name, each in parameters_of(base).items())
    with mixer.mixed({"enhancing": 1.0, "mitigating": 0.0}):
        assert any(not torch.equal(each, before[name]) for name, each in parameters_of(base).items())


def test_dials_scale_the_coefficients() -> None:
    options = safepatching_dials.OPTIONS(alpha=2.0, beta=1.0)
    assert safepatching_dials.scaled({"safety": 0.5, "helpfulness": 0.25}, options) == {
        "enhancing": 1.0, "mitigating": 0.25,
    }  # fmt: skip
    assert safepatching_dials.scaled({"politeness": 0.0}, options) == {"enhancing": 2.0, "mitigating": 1.0}
    assert safepatching_dials.HAS_DIAL and not safepatching.HAS_DIAL


@pytest.mark.parametrize(
    ("given", "said"),
    [({"retention": 1.5}, "allowed is a share"), ({"enhancing_share": -0.1}, "allowed is a share"),
     ({"alpha": -1.0}, "at least 0"), ({"beta": math.inf}, "finite"), ({"mitigating_share": math.nan}, "share")],
)  # fmt: skip
def test_options_that_are_none_are_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        safepatching.OPTIONS(**given)  # type: ignore[arg-type]


def test_layers_are_counted_by_the_first_number_of_their_names() -> None:
    tensors = {
        "model.layers.0.mlp.weight": {"weights": 6, "enhancing": 2},
        "model.layers.0.attn.weight": {"weights": 4, "mitigating": 1},
        "model.norm.weight": {"weights": 3},
    }
    assert by_layer(tensors) == {
        "model.layers.0": {"weights": 10, "enhancing": 2, "mitigating": 1},
        "model.norm.weight": {"weights": 3, "enhancing": 0, "mitigating": 0},
    }


def weights_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = safetensors.torch.load_file(folder / "model.safetensors")
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory of two small tensors, of two types."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = {"one.0.weight": torch.randn(4, 5), "two": torch.randn(6).to(torch.bfloat16)}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def written(folder: Path, model: Path, *, change: float = 1e-3) -> Path:
    """A patch of places 1 and 7 of `one.0.weight` and 5 of `two`."""
    weights = weights_of(model)
    tensors = {}
    for name, places in (("one.0.weight", [1, 7]), ("two", [5])):
        at = torch.tensor(places)
        tensors[name] = PatchedTensor(at, torch.full((len(places),), change), weights[name].flatten()[at])
    counts = {name: {"weights": each.numel()} for name, each in weights.items()}
    card = {"kind": "SafePatching", "model": "the base", "options": {"alpha": 1.0}, "tensors": counts}
    write_patch(folder, tensors, card)
    return folder


@pytest.mark.parametrize("change", [1e-3, 1e-9, 1e4])
def test_applied_then_reverted_is_the_base_to_the_last_byte(tmp_path: Path, model: Path, change: float) -> None:
    """Also where the change is lost in rounding, and where it would take the base's last bits with it."""
    patch = written(tmp_path / "patch", model, change=change)
    applied = apply_patch(patch, str(model), tmp_path / "there")
    before, after = weights_of(model), weights_of(tmp_path / "there")
    kept = sum(int((before[name] == after[name]).sum()) for name in before)
    assert (applied.changed, applied.lost) == (3, kept - 23)
    expected = before["one.0.weight"].flatten().clone()
    expected[[1, 7]] += change
    assert torch.equal(after["one.0.weight"].flatten(), expected)
    assert after["two"].dtype == torch.bfloat16
    apply_patch(patch, str(tmp_path / "there"), tmp_path / "back", revert=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        path.name: path.read_bytes() for path in model.iterdir()
    }
    assert identity(str(tmp_path / "back")) == identity(str(model))


def test_a_model_that_is_not_the_patchs_is_refused_and_nothing_is_left(tmp_path: Path, model: Path) -> None:
    patch = written(tmp_path / "patch", model)
    with pytest.raises(ModelError, match="does not hold what the patch has put there"):
        apply_patch(patch, str(model), tmp_path / "there", revert=True)
    apply_patch(patch, str(model), tmp_path / "there")
    with pytest.raises(ModelError, match="does not hold what the patch was made from"):
        apply_patch(patch, str(tmp_path / "there"), tmp_path / "twice")
    with pytest.raises(StorageError, match="not an empty folder"):
        apply_patch(patch, str(model), tmp_path / "there")
    weights = weights_of(model)
    shorter = {**weights, "one.0.weight": weights["one.0.weight"].to(torch.bfloat16)}
    safetensors.torch.save_file(shorter, model / "model.safetensors")
    with pytest.raises(ModelError, match=r"one.0.weight is torch.bfloat16, too short for .* torch.float32"):
        apply_patch(patch, str(model), tmp_path / "other")
    del weights["two"]
    safetensors.torch.save_file(weights, model / "model.safetensors")
    with pytest.raises(ModelError, match="no tensor two"):
        apply_patch(patch, str(model), tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "patch", "there"]
    (patch / "patch.safetensors").write_bytes(b"no")
    with pytest.raises(CorruptShard, match="corrupt"):
        read_patch(patch)
    with pytest.raises(StageMissing, match="without importance"):
        read_importance(tmp_path)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ('{"a": 1}', "got no kind and no model and no options and no tensors of a patch"),
        ('{"kind": "x", "model": "m", "options": {"a": 1}, "tensors": {}}', "got no tensors"),
        ('{"kind": "x", "model": "m", "options": {"a": 1}, "tensors": {"a": 3}}', "tensors.a got no number of weights"),
        ('{"kind": "x", "model": "m", "options": {"a": 1}, "tensors": {"a": {"weights": 0}}}', "no number of weights"),
        ('{"kind": "x", "model": "m", "options": {"a": 1}, "tensors": {"a": {"weights": 2, "enhancing": "b"}}}',
         "tensors.a got no number of changes"),
        ('{"kind": "x", "model": "m", "options": {"a": null}, "tensors": {"a": {"weights": 2}}}', "no numbers"),
        ("[", "patch.json is corrupt: got no kind"),
    ],
)  # fmt: skip
def test_a_card_that_is_none_is_corrupt(tmp_path: Path, card: str, said: str) -> None:
    (tmp_path / "patch.json").write_text(card, encoding="utf-8")
    refused(("patch", str(tmp_path)), said, "hint: make the patch again, with `rheostat patch RUN --to DIR`")


def test_broken_weights_and_a_copy_into_the_model_itself_are_refused(tmp_path: Path, model: Path) -> None:
    patch, there = written(tmp_path / "patch", model), tmp_path / "there"
    inside = ("patch", str(patch), "--model", str(model), "--to", str(model / "inside" / "it"))
    refused(inside, "which is inside the model", "allowed is a folder elsewhere")
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors"]
    whole = safetensors.torch.load_file(patch / "patch.safetensors")
    for part, wrong in (("places", torch.tensor([-1])), ("change", torch.ones(3)), ("places", torch.ones(1))):
        safetensors.torch.save_file({**whole, f"two/{part}": wrong}, patch / "patch.safetensors")
        refused(("patch", str(patch), "--model", str(model), "--to", str(there)), "patch.safetensors is corrupt: two")
    safetensors.torch.save_file(whole, patch / "patch.safetensors")
    (model / "model.safetensors").write_bytes(b"no weights")
    refused(("patch", str(patch), "--model", str(model), "--to", str(there)), "cannot read its model.safetensors")
    assert not there.exists()


def test_a_run_without_safepatching_is_told_to_add_it(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", create=True) as directory:
        directory.write_config(to_yaml(load_config("pocket")))
    refused(("patch", str(tmp_path / "run"), "--to", str(tmp_path / "patch")), "hint: add safepatching to `methods`")


def refused(arguments: tuple[str, ...], *said: str) -> None:
    """Refused as the user's fault, with these words."""
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 2, result.output
    shown = " ".join(result.output.split())
    assert all(each in shown for each in said), shown


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_of_safepatching_through_the_command_line(tmp_path: Path) -> None:
    """Trained, evaluated as a point and as dials, its patch written, shown, applied to the base and taken out."""
    small = (
        "prompts.train_limit=6", "prompts.evaluation_limit=2", "prompts.calibration_limit=0", "generate.samples=6",
        "generate.max_tokens=24", "evaluate.max_tokens=12", "evaluate.reachable_samples=2", "evaluate.bootstrap=100",
        "evaluate.forged_prompts=0", "levels=[0,1]", "train.steps=3", "train.batch_size=4", "distil.minimum_contrast=0",
        "distil.keep_truncated=true", "judges={}", "suite=null", "prompts.generalization=null",
        "methods=[safepatching,safepatching_dials]", "method_options={safepatching: {alpha: 2, enhancing_share: 0.4}}",
    )  # fmt: skip
    out, patch = tmp_path / "run", tmp_path / "patch"
    run("run", "pocket", "--out", str(out), *(f"--set={each}" for each in small))
    assert {path.name for path in (out / "train").iterdir()} == {"ascent-moec", "descent-moec"}
    methods = json.loads((out / "evaluation.json").read_text())["evaluations"]["optimization"]
    assert {name: entry["has_dial"] for name, entry in methods.items()} == {
        "safepatching": False, "safepatching_dials": True,
    }  # fmt: skip
    shown = run("patch", str(out), "--to", str(patch))
    assert shown == run("patch", str(patch))
    assert "model.layers.0" in shown and "alpha 2" in shown
    base = Path(resolve("pocket:chat"))
    card = read_card(patch)
    documented = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = documented.partition("## A patch of weights")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(card)
    assert card["identity"] == identity("pocket:chat") and card["options"]["enhancing_share"] == 0.4
    there, back = tmp_path / "there", tmp_path / "back"
    run("patch", str(patch), "--model", str(base), "--to", str(there))
    run("patch", str(patch), "--model", str(there), "--to", str(back), "--revert")
    originals, edited, reverted = (weights_of(folder) for folder in (base, there, back))
    changed = 0
    for name, weight in originals.items():
        assert torch.equal(weight, reverted[name])
        changed += int((weight != edited[name]).sum())
    counted = sum(each.get(role, 0) for each in card["tensors"].values() for role in ROLES)
    assert counted / 2 < changed <= counted  # the base is of 16 bits, its patch of 32
    assert any(layer[0] < layer[1] for layer in pairwise(sorted(by_layer(card["tensors"]))))
    load_policy(str(there))
    for wrong, said in (
        (("patch", str(patch), "--to", str(tmp_path / "x")), "both or neither"),
        (("patch", str(patch), "--revert"), "both or neither"),
        (("patch", str(out)), "allowed with a run is --to"),
    ):
        result = CliRunner().invoke(cli.app, list(wrong))
        assert result.exit_code == 2 and said in result.output.replace("\n", " ")


def test_its_objectives_and_methods_are_found_on_disk() -> None:
    assert {"ascent", "descent"} <= set(plugins.available("objectives"))
    assert {"safepatching", "safepatching_dials"} <= set(plugins.available("methods"))
