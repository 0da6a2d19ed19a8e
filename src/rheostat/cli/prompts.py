"""Looking at prompts before a run, as a command."""

from typing import Annotated

import typer

from rheostat.cli.app import app


@app.command()
def prompts(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="A file, a folder of a dataset, hf:NAME, or pocket:SPLIT; several are one pool."
        ),
    ],
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="At most so many prompts of each source. [default: all]"),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, metavar="N", help="How many prompts to show.")] = 3,
    column: Annotated[
        str | None, typer.Option("--column", metavar="NAME", help="The column that holds the prompt. [default: found]")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The configuration of a dataset that has several.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="The dataset's split. [default: train]")
    ] = None,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            "--near-duplicates",
            min=0,
            max=1,
            metavar="T",
            help="How alike two prompts are that are near-duplicates; 0 looks for none. [default: 0.85]",
        ),
    ] = None,
) -> None:
    """Show what sources of prompts give: counts, what is left out and why, lengths, samples.

    Nothing is written and no model is loaded; keys of a recipe's source block (docs/prompts.md) are options here.
    """
    from rheostat.config import PromptsConfig, SourceConfig
    from rheostat.prompt_overview import in_lines, overview

    default: float = PromptsConfig.model_fields["near_duplicates"].default
    threshold = default if near_duplicates is None else near_duplicates or None
    blocks: list[str | SourceConfig] = [
        SourceConfig(source=source, column=column, name=name, split=split, limit=limit) for source in sources
    ]
    for line in in_lines(overview(blocks, near_duplicates=threshold), samples=samples):
        typer.echo(line)
