"""What the commands say and hear: errors and remarks on standard error, answers on standard output."""

import io
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

import typer
from rich.console import Console
from rich.text import Text as RichText

from rheostat.errors import InputError, RheostatError


class LogHandler(logging.Handler):
    """Log records as plain lines, above any progress bar of the same console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def read_text(text: str) -> str:
    """The text given, or all of standard input for `-`."""
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


def spoken() -> Iterator[str]:
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


def complain(error: RheostatError) -> None:
    """A user's fault: what is wrong, and what to do."""
    print_line(error_console(), ("error:", "bold red"), f" {error.message}")
    print_line(error_console(), ("hint:", "bold cyan"), f" {error.hint}")


def note(line: str) -> None:
    """A remark, beside the results."""
    print_line(error_console(), (line, "dim"))


def say(answer: str) -> None:
    """A model's answer."""
    console = Console()
    if console.is_terminal:
        print_line(console, answer)
    else:
        typer.echo(answer)


def print_line(console: Console, *parts: str | tuple[str, str]) -> None:
    """A line of text and styled text: broken between words at a terminal, never elsewhere."""
    console.print(RichText.assemble(*parts), highlight=False, soft_wrap=not console.is_terminal)


def error_console() -> Console:
    """Standard error."""
    return Console(stderr=True)
