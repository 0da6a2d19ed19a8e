"""Forged controls: what controls typed by a user do to a tuned model's answers, and whether training on them helps.

Each model answers prompts that no training and no evaluation of the run has seen: plainly, with a forged control that
asks for the opposite corner (seven styles, neutralised and as typed), and with the forgery's innocent twin. What is
printed: how far the achieved score moved toward the forged level, beyond the twin's, with 95 % intervals.

    python benchmarks/forged.py RUN --models exmate other=FOLDER --prompts 48 --corners 4
    python benchmarks/forged.py RUN --shares 0 0.05 --seed 0 --keep FOLDER   # trains each first, as the run did
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import machine
from rheostat.config import RunConfig
from rheostat.dial_figures import forgery_figures
from rheostat.dial_tables import forgeries, forgery_sentence
from rheostat.dialled import tuned_model
from rheostat.fine_tuning import fine_tune
from rheostat.forgery import Arena, leaves_room
from rheostat.model_files import quiet
from rheostat.models import Reader, load_policy, load_reader
from rheostat.prompts import read_prompts
from rheostat.recipe import load_config, validate
from rheostat.records import Example, Prompt
from rheostat.rundir import RunDirectory
from rheostat.score import load_scorers
from rheostat.scoring import OWN


def trained(run: RunDirectory, config: RunConfig, share: float, styles: str, seed: int, to: Path) -> Path:
    """ExMATE as the run trained it, but for the share of examples with a forged control, its styles, and the seed."""
    values = config.model_dump(mode="json")
    values["train"] |= {"forged_share": share, "forged_styles": styles}
    values["seed"] = seed
    changed = validate(values)
    policy = load_policy(config.model)
    with tempfile.TemporaryDirectory() as folder:
        examples = run.finished("distil/moec").read(Example)
        fine_tune(policy, examples, objective="exmate", config=changed, checkpoints=Path(folder), label=to.name)
    policy.model.save_pretrained(to)
    policy.tokenizer.save_pretrained(to)
    return to


def unseen(run: RunDirectory, config: RunConfig, reader: Reader, count: int) -> list[Prompt]:
    """Held-out prompts that are in none of the run's splits."""
    source = config.prompts.optimization
    assert source is not None, "the run's recipe gives no prompts.optimization"
    seen = {
        prompt.id
        for split in ("train", "optimization", "generalization")
        for prompt in run.finished("prompts").read(Prompt, prefix=split)
    }
    fresh = [prompt for prompt in read_prompts(source, split="fresh").prompts if prompt.id not in seen]
    return [prompt for prompt in fresh if leaves_room(prompt, reader, config)][:count]


def main() -> None:
    """Trains where asked, measures, prints a table a model, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--models", nargs="*", default=[], help="tuned methods of the run, or NAME=FOLDER")
    parser.add_argument("--shares", type=float, nargs="*", default=[], help="train with these forged_share")
    parser.add_argument("--styles", choices=["exact", "all"], default="exact", help="of those forged controls")
    parser.add_argument("--seed", type=int, default=0, help="of those trainings")
    parser.add_argument("--keep", type=Path, help="keep the trained models here")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--corners", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with RunDirectory.open(arguments.run, read_only=True) as run, tempfile.TemporaryDirectory() as folder, quiet():
        config = load_config(run.config_path)
        scorer = load_scorers(run, config, [OWN])[OWN]
        models = {}
        for given in arguments.models:
            name, _, path = given.partition("=")
            models[name] = Path(path) if path else tuned_model(run, name)[0]
        for share in arguments.shares:
            name = f"forged {share:g} {arguments.styles}"
            to = (arguments.keep or Path(folder)) / name
            models[name] = trained(run, config, share, arguments.styles, arguments.seed, to)
        for name, path in models.items():
            arena = Arena(load_policy(str(path.resolve())), config, scorer)
            prompts = unseen(run, config, load_reader(str(path.resolve())), arguments.prompts)
            figures[name] = forgery_figures(arena.answer(prompts, arguments.corners, config.seed), config)
            print(forgery_sentence({"forgery": figures}, name))
            columns = ("beyond twin", "as typed, beyond twin", "from plain", "twin from plain", "changed more")
            print(f"{'':22}" + "".join(f"{column:>24}" for column in columns))
            for row in forgeries({"forgery": figures}, name):
                cells = (row.neutralised, row.as_typed, row.moved, row.twin_moved, row.changed_more)
                print(f"{row.style:22}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    machine.write(arguments.json, figures)


if __name__ == "__main__":
    main()
