"""Tables for a terminal: what a machine offers, and what a run will take."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from rheostat.footprint import Use, largest_model
from rheostat.machine import OPTIONAL, Machine
from rheostat.plan import Plan


def machine_tables(machine: Machine, rates: Mapping[str, Mapping[str, float]]) -> Sequence[Table]:
    """Devices with their `rates` (FLOP/s by device and type), the largest models that fit, the optional packages."""
    devices = Table("device", "memory", "free", box=box.SIMPLE_HEAD, title="Devices", title_justify="left")
    for dtype in ("float32", "bfloat16"):
        devices.add_column(f"{dtype}, TFLOP/s", justify="right")
    for device in machine.devices:
        measured = [rates[device.name].get(dtype) for dtype in ("float32", "bfloat16")]
        devices.add_row(
            f"{device.name}: {device.description}",
            size(device.memory),
            size(device.free),
            *("–" if rate is None else f"{rate / 1e12:.2f}" for rate in measured),
        )
    devices.caption = f"{machine.threads} threads on {machine.cores} cores; {size(machine.disk_free)} free on disk"
    devices.caption_justify = "left"
    return (devices, _fits(machine), _packages(machine))


def plan_table(plan: Plan) -> Table:
    """The parts of a run with their tokens and time; under it memory and disk at the most."""
    table = Table("part", "work", box=box.SIMPLE_HEAD, show_footer=True)
    table.columns[0].footer = "all"
    table.add_column("tokens", justify="right", footer=f"{plan.tokens:,}")
    table.add_column("time", justify="right", footer=duration(plan.seconds))
    for step in plan.steps:
        table.add_row(step.name, step.work, f"{step.tokens:,}" if step.tokens else "", duration(step.seconds))
    if plan.other_seconds:
        table.add_row("loading, figures", "", "", duration(plan.other_seconds))
    basis = (
        "measured by a rehearsal on this machine"
        if plan.kind == "measured"
        else "reckoned from the model's shape; tokens are upper bounds"
    )
    table.caption = f"memory {size(plan.memory)}, disk {size(plan.disk)} at the most; {basis}"
    table.caption_justify = "left"
    return table


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _fits(machine: Machine) -> Table:
    table = Table("device", box=box.SIMPLE_HEAD, title="Largest model that fits into free memory", title_justify="left")
    uses: tuple[tuple[str, str, Use], ...] = (
        ("generate, bfloat16", "bfloat16", "generate"),
        ("LoRA, bfloat16", "bfloat16", "lora"),
        ("all weights", "float32", "full"),
    )
    for heading, _, _ in uses:
        table.add_column(heading, justify="right")
    for device in machine.devices:
        table.add_row(
            device.name, *(_parameters(largest_model(device.free, dtype, use)) for _, dtype, use in uses)
        )
    table.caption, table.caption_justify = "parameters; a fifth of the memory is left to caches and activations", "left"
    return table


def _packages(machine: Machine) -> Table:
    table = Table(
        "package", "version", "what for", box=box.SIMPLE_HEAD, title="Optional packages", title_justify="left"
    )
    for name, version in machine.packages.items():
        table.add_row(name, version or "–", OPTIONAL[name])
    return table


def _parameters(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
