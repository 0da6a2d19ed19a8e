"""The application: what every command shares, faults and the log above all."""

import errno
import io
import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rheostat.cli.console import LogHandler, complain, error_console, note
from rheostat.errors import RheostatError, StorageError
from rheostat.version import __version__

USER_ERROR = 2
INTERRUPTED = 130
RESUMABLE = ("run", "generate", "score", "distil", "train", "evaluate", "report")
"""Commands that take up where they were stopped."""


class _Group(TyperGroup):
    """Commands whose user errors end in `error:`, `hint:` and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RheostatError as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            complain(error)
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as interrupt:
            resumes = ctx.invoked_subcommand in RESUMABLE
            note("interrupted; the same command takes up where it stopped" if resumes else "interrupted")
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
        complain(
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
        if isinstance(handler, LogHandler):
            logger.removeHandler(handler)
    logger.addHandler(LogHandler(error_console()))
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
