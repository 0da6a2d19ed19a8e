"""The main job and its stages as commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rheostat.cli.app import app
from rheostat.cli.console import error_console
from rheostat.cli.options import MethodOption, Overrides, Recipe, RunPath, Strict
from rheostat.errors import InputError

if TYPE_CHECKING:
    from rheostat.config import RunConfig
    from rheostat.pipeline import RunOutcome

DEFAULT_RECIPE = "pocket"


@app.command()
def run(
    config: Recipe = DEFAULT_RECIPE,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The run directory. [default: runs/ and the recipe's name]"
        ),
    ] = None,
    overrides: Overrides = None,
    strict: Strict = False,
) -> None:
    """Do all stages and print the table.

    A run that was stopped takes up where it was; what has finished for the same recipe is not done again.
    """
    recipe = _recipe(config, overrides, strict=strict)
    from rheostat import pipeline
    from rheostat.progress import console_progress

    _conclude(
        pipeline.run(recipe, out or Path("runs") / Path(config).stem, progress=console_progress(error_console()))
    )


@app.command()
def generate(
    start: Annotated[
        str,
        typer.Argument(
            metavar="RUN|CONFIG",
            help="The run directory; with --out, the recipe to start it with.",
            show_default=False,
        ),
    ] = DEFAULT_RECIPE,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Start a run in this directory.")
    ] = None,
    overrides: Overrides = None,
    strict: Strict = False,
) -> None:
    """Self-generate responses to the training prompts."""
    if out is None:
        if overrides or strict:
            raise InputError(
                "got --set or --strict without --out, allowed is both only where a run is started",
                hint="a run has its recipe already; start one with `rheostat generate CONFIG --out DIR`",
            )
        _stage("generate", Path(start))
        return
    recipe = _recipe(start, overrides, strict=strict)
    from rheostat import pipeline
    from rheostat.progress import console_progress

    pipeline.start(recipe, out, progress=console_progress(error_console()))
    typer.echo(f"Next: rheostat score {out}")


@app.command()
def score(run: RunPath) -> None:
    """Score the responses, and calibrate the scores."""
    _stage("score", run)


@app.command()
def distil(run: RunPath) -> None:
    """Distil the scored responses into training examples."""
    _stage("distil", run)


@app.command()
def train(run: RunPath) -> None:
    """Fine-tune with every objective of the recipe."""
    _stage("train", run)


@app.command()
def evaluate(run: RunPath) -> None:
    """Evaluate every method, and print the table."""
    _stage("evaluate", run)
    import json

    _print_evaluation(json.loads((run / "evaluation.json").read_bytes()))


@app.command()
def report(run: RunPath) -> None:
    """Write the report page and its pictures, and print the table."""
    _stage("report", run)


@app.command()
def export(
    run: RunPath,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The model directory to write.")],
    method: MethodOption = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="The weights' type. [default: the recipe's]"),
    ] = None,
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter/--merge",
            help="Write the low-rank adapter alone, in PEFT's layout, instead of the whole model with it merged.",
        ),
    ] = False,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            "--floor",
            metavar="NAME=LEVEL",
            help="Raise to a level whatever is asked of a dial below it, in the template itself; repeatable.",
        ),
    ] = None,
    default: Annotated[
        list[str] | None,
        typer.Option(
            "--default",
            metavar="NAME=LEVEL",
            help="Where a dial stands that is not given, instead of at its highest level; repeatable.",
        ),
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrated", help="Let a dial's number be the level achieved, as far as the model reaches."
        ),
    ] = False,
) -> None:
    """Write a tuned model as a directory to serve.

    It is an ordinary Hugging Face directory, whose chat template takes the dials.
    """
    from rheostat.export import export as write
    from rheostat.talk import parse_named_levels

    write(
        run,
        to,
        method=method,
        form="adapter" if adapter else "merge",
        dtype=dtype,
        floors=parse_named_levels("--floor", floor or []),
        defaults=parse_named_levels("--default", default or []),
        calibrated=calibrated,
    )
    typer.echo(str(to))


@app.command()
def config(
    recipe: Recipe = DEFAULT_RECIPE,
    overrides: Overrides = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Print every key with its type, default and meaning instead.")
    ] = False,
) -> None:
    """Print a recipe as it is resolved, all defaults filled in."""
    from rheostat.config import RunConfig
    from rheostat.config_fields import describe_fields
    from rheostat.recipe import load_config, to_yaml

    if not describe:
        typer.echo(to_yaml(load_config(recipe, overrides or [])), nl=False)
        return
    for path, kind, default, meaning in describe_fields(RunConfig):
        typer.echo(f"{path}  ({kind}{f', default {default}' if default else ''})")
        if meaning:
            typer.echo(f"    {meaning}")


def _stage(name: Literal["generate", "score", "distil", "train", "evaluate", "report"], run: Path) -> None:
    from rheostat import pipeline
    from rheostat.progress import console_progress

    outcome = pipeline.stage(name, run, progress=console_progress(error_console()))
    if outcome is not None:
        _conclude(outcome)


def _conclude(outcome: "RunOutcome") -> None:
    """The end of a run: the table, where the report is, and what to try next."""
    _print_evaluation(outcome.evaluation)
    typer.echo(f"Report: {outcome.report}")
    typer.echo(f'Next:   rheostat compare "How do I patch a bicycle tyre?" --run {outcome.directory}')


def _recipe(source: str, overrides: Sequence[str] | None, *, strict: bool) -> "RunConfig":
    from rheostat.recipe import load_config

    return load_config(source, [*(overrides or []), *(["prompts.strict=true"] if strict else [])])


def _print_evaluation(evaluation: dict[str, Any]) -> None:
    from rheostat.tables import evaluation_tables, show

    for table in evaluation_tables(evaluation):
        show(table)
        typer.echo()
