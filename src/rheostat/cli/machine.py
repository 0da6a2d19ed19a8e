"""What this machine can do, and what a run will take on it."""

from typing import Annotated

import typer

from rheostat.cli.app import app
from rheostat.cli.console import error_console, note
from rheostat.cli.options import Overrides, Recipe
from rheostat.errors import InputError


@app.command()
def doctor() -> None:
    """Say what this machine can do: devices, memory, optional packages, how large a model fits."""
    from rheostat.machine import look, matmul_rate
    from rheostat.machine_tables import machine_tables
    from rheostat.tables import show

    machine = look()
    with error_console().status("measuring matrix products"):
        rates = {
            device.name: {
                dtype: matmul_rate(device.name, dtype)
                for dtype in (("float32", "bfloat16") if device.has_bfloat16 else ("float32",))
            }
            for device in machine.devices
        }
    for table in machine_tables(machine, rates):
        show(table)
        typer.echo()


@app.command()
def plan(
    config: Recipe = "pocket",
    overrides: Overrides = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--tflops",
            min=0.001,
            metavar="RATE",
            help="Rehearse nothing: reckon for a device whose matrix products run at so many TFLOP/s "
            "(an H100's bfloat16 peak is 989).",
        ),
    ] = None,
) -> None:
    """Predict tokens, time, memory and disk of a run, before anything is spent.

    The recipe is rehearsed here in miniature, which also meets whatever would stop the run; --tflops reckons for a
    machine that is not here.
    """
    from rheostat.machine_tables import plan_table
    from rheostat.plan import measured_plan, reckoned_plan
    from rheostat.progress import console_progress
    from rheostat.recipe import load_config
    from rheostat.tables import show

    recipe = load_config(config, overrides or [])
    if rate is not None:
        found = reckoned_plan(recipe, rate=rate * 1e12)
    else:
        note("rehearsing in miniature")
        found = measured_plan(recipe, progress=console_progress(error_console()))
    if not found.steps:
        raise InputError("there is nothing to do in this recipe", hint="name methods and prompts")
    show(plan_table(found))
