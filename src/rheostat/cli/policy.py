"""Keys and policy files of the gateway."""

import sys
from datetime import UTC, datetime
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from rheostat.cli.app import app
from rheostat.cli.console import note, read_text
from rheostat.cli.options import FromRun
from rheostat.errors import InputError


@app.command()
def key(
    id: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the audit log calls the key. [default: made from its hash]"),
    ] = None,
    hash: Annotated[
        str | None,
        typer.Option(metavar="-", help="Make no key: read one from standard input and print its hash."),
    ] = None,
) -> None:
    """Make a key for the gateway.

    The key goes to standard output, this once; to standard error go the lines for the policy file, which hold only its
    hash.
    """
    from rheostat.gateway.keys import hash_key, key_lines, new_key

    if hash is not None:
        typer.echo(hash_key(_given_key(hash)))
        return
    made = new_key()
    lines = key_lines(made, id)
    typer.echo(made)
    note("kept nowhere: store it now. Under `keys` of a tenant in the policy file goes:")
    typer.echo(lines, err=True)


@app.command()
def policy(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The policy file.", show_default=False)
    ] = None,
    run: FromRun = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the model is served as. [default: its folder's name, or pocket]"),
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a policy file that has every key.")] = False,
) -> None:
    """Check a policy file of the gateway against a model's dials, and show what it says.

    A file with faults ends with all of them and exit code 2.
    """
    from rheostat.gateway.policy_source import example_policy, read_policy_file

    if example:
        typer.echo(example_policy(), nl=False)
        return
    if file is None:
        raise InputError("got no policy file", hint="name one, or begin with `rheostat policy --example`")
    from rheostat.gateway.policy_tables import policy_tables
    from rheostat.gateway.served import served_dials, served_name
    from rheostat.tables import show

    found = read_policy_file(file, {name or served_name(run): served_dials(run)})
    for table in policy_tables(found, datetime.now(UTC)):
        show(table)
        typer.echo()
    typer.echo(f"audit log: {found.audit.path if found.audit else 'none'}")
    typer.echo(f"SHA-256: {found.digest}")


def _given_key(source: str) -> str:
    """The key on standard input; none is taken off the command line, where every user of the machine can read it."""
    from rheostat.gateway.keys import is_key

    if source != "-":
        raise InputError(
            "--hash: got text, allowed is - alone, since others can read a command line",
            hint="pipe the key in: `rheostat key --hash -`",
        )
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    given = (getpass("key: ") if is_typed else read_text("-")).strip()
    if not is_key(given):
        raise InputError(
            f"got {len(given)} characters that are no key of `rheostat key`", hint="a key is rheo- and 43 characters"
        )
    return given
