"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A recipe: a YAML file, or the name of a packaged one. [default: pocket]",
        show_default=False,
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a key of the recipe, for example train.epochs=2; repeatable."
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at a broken line of a prompt file instead of skipping it.")
]
Text = Annotated[
    str, typer.Argument(metavar="TEXT", help="What to respond to; - reads it from standard input.")
]
FromRun = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", help="The run, or exported model, to use. [default: the packaged pocket model]"
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option("--method", metavar="METHOD", help="Which tuned method of the run. [default: exmate]"),
]
Safety = Annotated[
    float | None,
    typer.Option(
        metavar="LEVEL", help="The safety dial, 0 to 1; the model's nearest level is used. [default: 1]"
    ),
]
Helpfulness = Annotated[
    float | None,
    typer.Option(metavar="LEVEL", help="The helpfulness dial, likewise. [default: 1]"),
]
Dials = Annotated[
    list[str] | None, typer.Option("--dial", metavar="NAME=LEVEL", help="Any other dial; repeatable.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system turn before it.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, metavar="N", help="The seed of the sampling.")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0, max=100, metavar="T", help="The sampling temperature; 0 is greedy.")
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", min=1, metavar="N", help="The longest answer, in tokens.")
]
