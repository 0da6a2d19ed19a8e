"""What this machine offers: devices, memory, the rate of its matrix products, the optional packages."""

import importlib.metadata
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rheostat.config import Dtype

OPTIONAL = {
    "bitsandbytes": "4-bit loading on CUDA",
    "ray": "executor: ray",
    "openai": "engine: openai, rewards of kind judge",
    "trl": "objectives trained online (rlhf); reward fit on pairs",
    "flash_attn": "attention: flash_attention_2",
    "vllm": "a fast server for exported models",
}
"""Packages that Rheostat can use and does not need, each with what for."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Device:
    """A place where a model can run: its memory in bytes, all of it and what is free now."""

    name: str
    description: str
    memory: int
    free: int
    has_bfloat16: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores, devices (the best first, the CPU last), free bytes of the working directory's disk, packages by name."""

    cores: int
    threads: int
    devices: tuple[Device, ...]
    disk_free: int
    packages: dict[str, str | None]


def look() -> Machine:
    """This machine as it is now; costs no measurement."""
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        devices=(*_accelerators(), _cpu()),
        disk_free=shutil.disk_usage(Path.cwd()).free,
        packages={name: _version(name) for name in OPTIONAL},
    )


def matmul_rate(
    device: str = "cpu", dtype: Dtype = "float32", *, size: int | None = None, repetitions: int = 9
) -> float:
    """FLOP/s of a square matrix product `(size, size)` on a device: the median of a few; 2 · size³ operations each."""
    on_cpu = device == "cpu"
    width = size or (1024 if on_cpu else 8192)
    left = torch.randn(width, width, device=device).to(_DTYPES[dtype])
    right = torch.randn(width, width, device=device).to(_DTYPES[dtype])

    def product() -> None:
        torch.mm(left, right)
        if not on_cpu:
            torch.accelerator.synchronize()

    seconds = [timed(product) for _ in range(repetitions + 2)][2:]
    return 2 * width**3 / statistics.median(seconds)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _accelerators() -> list[Device]:
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            Device(
                f"cuda:{index}",
                torch.cuda.get_device_name(index),
                total,
                free,
                torch.cuda.is_bf16_supported(),
            )
        )
    if torch.backends.mps.is_available():
        limit = torch.mps.recommended_max_memory()
        found.append(Device("mps", "Apple GPU", limit, limit - torch.mps.current_allocated_memory(), True))
    return found


def _cpu() -> Device:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _control_group_limit()
    return Device(
        "cpu",
        f"{os.cpu_count()} logical cores, {torch.backends.cpu.get_cpu_capability()}",
        min(total, limit),
        min(_available(total), limit),
        True,
    )


def _available(total: int) -> int:
    """Bytes that can be had without swapping; Linux says so, elsewhere all memory is the best guess."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return total
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _control_group_limit() -> int:
    """The memory limit of a container, where there is one."""
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text(encoding="ascii").strip() if path.exists() else "max"
    return int(text) if text.isdigit() else 2**63


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None
