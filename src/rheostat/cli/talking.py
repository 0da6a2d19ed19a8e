"""Talking to a dialled model as commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rheostat.cli.app import app
from rheostat.cli.console import complain, note, read_text, say, spoken
from rheostat.cli.options import (
    Dials,
    FromRun,
    Helpfulness,
    MaxTokens,
    MethodOption,
    Safety,
    Seed,
    System,
    Temperature,
    Text,
)

if TYPE_CHECKING:
    from rheostat.talk import Talker


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
    messages = messages_of(read_text(text), system)
    say(answer(_model(run, method), messages, dials, Manner(temperature, max_tokens, seed)))


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
    messages = messages_of(read_text(text), system)
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
        note("This is the packaged pocket model, a toy of few words; --run DIR talks to your own.\n")
    note(f"{HELP}\n\n{conversation.show_dials()}")
    converse(conversation, spoken(), reply=say, note=note, fault=complain)


def _model(path: Path | None, method: str | None) -> "Talker":
    import rheostat

    model: Talker = rheostat.load(path, method=method)
    return model
