"""Reward models: made, and checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rheostat.cli.app import app
from rheostat.cli.console import error_console, note, print_line

if TYPE_CHECKING:
    from rheostat.reward_data import RewardData

reward_app = typer.Typer(
    no_args_is_help=True, help="Make a reward model, or check one against data.", rich_markup_mode=None
)
app.add_typer(reward_app, name="reward")

Kind = Annotated[
    Literal["pairs", "labels"] | None,
    typer.Option("--kind", help="What the rows are. [default: pairs where a row has `chosen`, else labels]"),
]
Positive = Annotated[
    str | None,
    typer.Option("--positive", metavar="LABEL", help="The label that means more of the attribute."),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="Use at most N rows, picked by their content's hash."),
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="The weights' type.")
]
Device = Annotated[str, typer.Option("--device", help="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")]


@reward_app.command("fit")
def reward_fit(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Preference pairs or labels: .jsonl(.gz), .json, .csv, .parquet.", show_default=False
        ),
    ],
    base: Annotated[
        str, typer.Option("--base", metavar="MODEL", help="The model whose trunk is fitted: a directory or an id.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The model directory to write.")],
    kind: Kind = None,
    positive: Positive = None,
    held_out: Annotated[
        float,
        typer.Option(
            "--held-out", min=0.001, max=0.9, metavar="SHARE", help="Share of the conversations kept to measure it."
        ),
    ] = 0.1,
    epochs: Annotated[float, typer.Option("--epochs", min=0.001, metavar="N", help="Passes over the rows.")] = 2.0,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="N", help="Train for so many steps instead.")
    ] = None,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", metavar="RATE", help="Its peak; small trunks want about 5e-4.")
    ] = 1e-4,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Rows a step.")] = 16,
    limit: Limit = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, metavar="N", help="Of every draw.")] = 0,
    dtype: DtypeOption = "float32",
    device: Device = "auto",
) -> None:
    """Fit a reward model on preference pairs or labels.

    A fit that was stopped takes up at its last checkpoint. The directory is one that `kind: classifier` loads;
    reward.json in it says what the model learned from and how well it does on what was held out.
    """
    from rheostat.progress import console_progress
    from rheostat.reward_fit import FitOptions, fit

    rows = _read(data, kind, positive, limit)
    options = FitOptions(
        epochs=epochs,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        held_out=held_out,
        seed=seed,
        dtype=dtype,
    )
    fitted = fit(
        rows,
        base,
        to,
        name=data.name,
        options=options,
        positive=positive,
        device=device,
        progress=console_progress(error_console()),
    )
    from rheostat.reward_tables import card_lines

    for line in card_lines(fitted.card):
        typer.echo(line)
    typer.echo(f"Next: rheostat reward check {to} --data {data}" + (f" --positive {positive}" if positive else ""))


@reward_app.command("check")
def reward_check(
    reward: Annotated[
        str,
        typer.Argument(
            metavar="REWARD",
            help="A model, `python:MODULE:FUNCTION`, or a recipe's block: '{kind: guard, ...}'.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path, typer.Option("--data", metavar="DATA", help="Preference pairs or labels, as `reward fit` takes them.")
    ],
    against: Annotated[
        str | None, typer.Option("--against", metavar="REWARD", help="Another reward, to see how far they agree.")
    ] = None,
    kind: Kind = None,
    positive: Positive = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            "--held-out",
            min=0.001,
            max=0.9,
            metavar="SHARE",
            help="Only the share that `reward fit` holds out. [default: of data it learned from, what it held out]",
        ),
    ] = None,
    limit: Limit = None,
    attribute: Annotated[
        str, typer.Option("--attribute", metavar="NAME", help="What is scored, for kinds that ask.")
    ] = "safety",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="PNG", help="Write the calibration curve as a picture.")
    ] = None,
    dtype: DtypeOption = "float32",
    device: Device = "auto",
) -> None:
    """Check a reward: accuracy, calibration, range and sign, agreement with another.

    Of data that the reward was fitted on, only what was held out is used.
    """
    import json

    from rheostat.progress import console_progress
    from rheostat.reward_check import check, learned_from, parse_reward, sign_warning
    from rheostat.storage import write_bytes

    spec = parse_reward(reward)
    other = None if against is None else parse_reward(against)
    rows = _read(data, kind, positive, None)
    if held_out is None:
        held_out = learned_from(spec, rows)
        if held_out is not None:
            note(f"{reward} was fitted on these data: only the {held_out:.0%} that it held out are used")
    if held_out is not None:
        rows = rows.part(held_out, is_held_out=True)
    document: dict[str, Any] = check(
        spec,
        rows.first(limit),
        name=data.name,
        against=other,
        attribute=attribute,
        dtype=dtype,
        device=device,
        progress=console_progress(error_console()),
    )
    if picture is not None:
        from rheostat.reward_tables import calibration_picture

        write_bytes(picture, calibration_picture(document))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        from rheostat.reward_tables import check_tables
        from rheostat.tables import show

        for table in check_tables(document):
            show(table)
            typer.echo()
    warning = sign_warning(document)
    if warning is not None:
        print_line(error_console(), ("warning:", "bold red"), f" {warning}")


def _read(
    path: Path, kind: Literal["pairs", "labels"] | None, positive: str | None, limit: int | None
) -> "RewardData":
    from rheostat.reward_data import read

    return read(path, kind=kind, positive=positive).first(limit)
