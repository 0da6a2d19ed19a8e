"""The pocket world's commands."""

from pathlib import Path
from typing import Annotated

import typer

from rheostat.cli.app import app

pocket_app = typer.Typer(no_args_is_help=True, help="The embedded pocket world.", rich_markup_mode=None)
app.add_typer(pocket_app, name="pocket")


@pocket_app.command("build")
def pocket_build(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the weights go.")] = Path(
        "pocket-weights"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="The seed of everything.")] = 0,
) -> None:
    """Make the pocket world's models from nothing.

    It takes about half an hour on two cores.
    """
    from rheostat.pocket.build import build

    build(out, seed=seed)
    typer.echo(str(out))
