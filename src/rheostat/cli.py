"""The command line: arguments only. Results go to standard output, logs and progress to standard error."""

import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.console import Console
from rich.text import Text as RichText
from typer.core import TyperGroup

from rheostat.cli_options import (
    Dials,
    FromRun,
    Helpfulness,
    MaxTokens,
    MethodOption,
    Overrides,
    Recipe,
    RunPath,
    Safety,
    Seed,
    Strict,
    System,
    Temperature,
    Text,
)
from rheostat.errors import InputError, RheostatError, StorageError
from rheostat.version import __version__

if TYPE_CHECKING:
    from rheostat.config import RunConfig
    from rheostat.pipeline import RunOutcome
    from rheostat.talk import Talker

USER_ERROR = 2
INTERRUPTED = 130
DEFAULT_RECIPE = "pocket"
_STAGES = ("generate", "score", "distil", "train", "evaluate", "report")


class _Handler(logging.Handler):
    """Log records as plain lines, above any progress bar of the same console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Group(TyperGroup):
    """Commands whose user errors end in `error:`, `hint:` and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RheostatError as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            _complain(error)
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as interrupt:
            resumes = ctx.invoked_subcommand in ("run", *_STAGES)
            _note("interrupted; the same command takes up where it stopped" if resumes else "interrupted")
            raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    name="rheostat",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Two dials, safety and helpfulness, for any chat model, turned per request.",
    epilog="Begin with `rheostat run`: all stages on the packaged pocket world, offline, in minutes. Or talk to its "
    "tuned model at once: `rheostat chat`.",
)
pocket_app = typer.Typer(no_args_is_help=True, help="The embedded pocket world.", rich_markup_mode=None)
app.add_typer(pocket_app, name="pocket")


def main() -> None:
    """Run the command line; a standard output that cannot be written is a fault without traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets `?`, not a traceback
    try:
        app()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF) or error.filename is not None:
            raise
        _complain(
            StorageError(
                f"cannot write to standard output: {error.strerror}",
                hint="free some space, or send the output elsewhere",
            )
        )
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(USER_ERROR)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rheostat {__version__}")
        raise typer.Exit()


@app.callback()
def _global(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show more of the log, and tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    logger = logging.getLogger("rheostat")
    for handler in list(logger.handlers):
        if isinstance(handler, _Handler):
            logger.removeHandler(handler)
    logger.addHandler(_Handler(_errors()))
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


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
        pipeline.run(recipe, out or Path("runs") / Path(config).stem, progress=console_progress(_errors()))
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

    pipeline.start(recipe, out, progress=console_progress(_errors()))
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
) -> None:
    """Write a tuned model as a directory to serve.

    It is an ordinary Hugging Face directory, whose chat template takes the dials.
    """
    from rheostat.export import export as write

    write(run, to, method=method, dtype=dtype)
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
    from rheostat.config import RunConfig, load_config, to_yaml
    from rheostat.config_fields import describe_fields

    if not describe:
        typer.echo(to_yaml(load_config(recipe, overrides or [])), nl=False)
        return
    for path, kind, default, meaning in describe_fields(RunConfig):
        typer.echo(f"{path}  ({kind}{f', default {default}' if default else ''})")
        if meaning:
            typer.echo(f"    {meaning}")


@app.command()
def respond(
    text: Text,
    safety: Safety = None,
    helpfulness: Helpfulness = None,
    dial: Dials = None,
    run: FromRun = None,
    method: MethodOption = None,
    system: System = None,
    seed: Seed = 0,
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 128,
) -> None:
    """Answer once, at the levels of the dials."""
    from rheostat.talk import Manner, answer, messages_of, parse_dials

    dials = parse_dials(dial or [], safety=safety, helpfulness=helpfulness)
    messages = messages_of(_text(text), system)
    _say(answer(_model(run, method), messages, dials, Manner(temperature, max_tokens, seed)))


@app.command()
def compare(
    text: Text,
    levels: Annotated[
        str | None,
        typer.Option("--levels", metavar="LEVELS", help="Levels of each dial, for example 0,0.25,1."),
    ] = None,
    run: FromRun = None,
    method: MethodOption = None,
    system: System = None,
    seed: Seed = 0,
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 128,
) -> None:
    """Show the answers across the dials as a table."""
    from rheostat.talk import Manner, answer_grid, messages_of, parse_levels

    chosen = parse_levels(levels) if levels is not None else None
    messages = messages_of(_text(text), system)
    answers = answer_grid(_model(run, method), messages, chosen, Manner(temperature, max_tokens, seed))
    from rheostat.tables import answer_table, show

    show(answer_table(answers))


@app.command()
def chat(
    safety: Safety = None,
    helpfulness: Helpfulness = None,
    dial: Dials = None,
    run: FromRun = None,
    method: MethodOption = None,
    system: System = None,
    seed: Seed = 0,
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 128,
) -> None:
    """Talk, and turn the dials while you talk.

    /safety 0.5 turns a dial, /dials shows them, /reset forgets the conversation, /help lists the rest, /quit leaves.
    """
    from rheostat.talk import HELP, Conversation, Manner, converse, parse_dials

    dials = parse_dials(dial or [], safety=safety, helpfulness=helpfulness)
    conversation = Conversation(
        _model(run, method), Manner(temperature, max_tokens, seed), dials, system=system
    )
    if run is None:
        _note("This is the packaged pocket model, a toy of few words; --run DIR talks to your own.\n")
    _note(f"{HELP}\n\n{conversation.show_dials()}")
    converse(conversation, _spoken(), reply=_say, note=_note, fault=_complain)


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


def _stage(name: Literal["generate", "score", "distil", "train", "evaluate", "report"], run: Path) -> None:
    from rheostat import pipeline
    from rheostat.progress import console_progress

    outcome = pipeline.stage(name, run, progress=console_progress(_errors()))
    if outcome is not None:
        _conclude(outcome)


def _conclude(outcome: "RunOutcome") -> None:
    """The end of a run: the table, where the report is, and what to try next."""
    _print_evaluation(outcome.evaluation)
    typer.echo(f"Report: {outcome.report}")
    typer.echo(f'Next:   rheostat compare "How do I patch a bicycle tyre?" --run {outcome.directory}')


def _recipe(source: str, overrides: Sequence[str] | None, *, strict: bool) -> "RunConfig":
    from rheostat.config import load_config

    return load_config(source, [*(overrides or []), *(["prompts.strict=true"] if strict else [])])


def _model(path: Path | None, method: str | None) -> "Talker":
    import rheostat

    model: Talker = rheostat.load(path, method=method)
    return model


def _text(text: str) -> str:
    if text != "-":
        return text
    if sys.stdin is None:
        raise InputError(
            "got a closed standard input, allowed is text", hint="pipe it in, or give it in quotes"
        )
    return _standard_input().read()


def _standard_input() -> TextIO:
    """Bytes that are no text pass as surrogates, which a conversation refuses by their place."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def _spoken() -> Iterator[str]:
    """The user's lines: edited at a terminal, read as they are elsewhere."""
    if sys.stdin is None:
        raise InputError("got a closed standard input, allowed are lines to answer", hint="pipe them in")
    if not sys.stdin.isatty():
        yield from _standard_input()
        return
    import readline  # noqa: F401  gives `input` its line editing

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo(err=True)
            return


def _print_evaluation(evaluation: dict[str, Any]) -> None:
    from rheostat.tables import evaluation_tables, show

    for table in evaluation_tables(evaluation):
        show(table)
        typer.echo()


def _complain(error: RheostatError) -> None:
    _print(_errors(), ("error:", "bold red"), f" {error.message}")
    _print(_errors(), ("hint:", "bold cyan"), f" {error.hint}")


def _note(line: str) -> None:
    _print(_errors(), (line, "dim"))


def _say(answer: str) -> None:
    console = Console()
    if console.is_terminal:
        _print(console, answer)
    else:
        typer.echo(answer)


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    """A line of text and styled text: broken between words at a terminal, never elsewhere."""
    console.print(RichText.assemble(*parts), highlight=False, soft_wrap=not console.is_terminal)


def _errors() -> Console:
    return Console(stderr=True)
