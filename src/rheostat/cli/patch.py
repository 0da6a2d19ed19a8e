"""SafePatching's patch of weights: made, looked at, put into a model and taken out."""

from pathlib import Path
from typing import Annotated

import typer

from rheostat.cli.app import app
from rheostat.cli.console import note
from rheostat.errors import InputError


@app.command()
def patch(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|PATCH", help="A run to make a patch of, or a patch.", show_default=False),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="What to write: of a run its patch, with --model the edited model."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="DIR", help="The model directory that a patch is put into; it stays as it is."),
    ] = None,
    revert: Annotated[
        bool, typer.Option("--revert", help="Take the patch out of the model again, instead of putting it in.")
    ] = False,
) -> None:
    """Make, show, apply or revert a SafePatching patch.

    Of a run that has trained `safepatching` it writes the patch; of a patch it prints how many weights of which layers
    it changes; with --model it writes a copy of a model directory with the patch in its weights, or, with --revert, out
    of them again, to the last bit.
    """
    from rheostat.patch_files import apply_patch, is_patch, make_patch, read_card
    from rheostat.patch_tables import patch_table
    from rheostat.tables import show

    if not is_patch(source):
        if to is None or model is not None or revert:
            raise InputError(
                f"{source}: got no patch, allowed with a run is --to DIR and nothing else",
                hint="make the run's patch first, with `rheostat patch RUN --to DIR`",
            )
        show(patch_table(make_patch(source, to)))
    elif model is not None and to is not None:
        applied = apply_patch(source, model, to, revert=revert)
        if applied.lost and not revert:
            note(f"{applied.lost:,} of {applied.changed:,} changes are lost in the rounding of the model's own type")
        typer.echo(str(to))
    elif model is None and to is None and not revert:
        show(patch_table(read_card(source)))
    else:
        raise InputError(
            "got a patch with one of --model and --to, allowed are both or neither",
            hint="give --model DIR, the model to edit, and --to DIR, the one to write",
        )
