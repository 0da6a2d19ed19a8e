"""What SafePatching leaves open, for its methods and its command: importable without torch."""

from dataclasses import dataclass

ENHANCING, MITIGATING = "enhancing", "mitigating"
"""The roles of its two trainings, and the names of its two patches: P_SE and P_OS."""
TRAININGS = {ENHANCING: "ascent", MITIGATING: "descent"}


@dataclass(frozen=True, slots=True)
class PatchOptions:
    """p (`retention`), a and b (`enhancing_share`, `mitigating_share`), α and β (`alpha`, `beta`), and a seed.

    p, a and b are shares in [0, 1], α and β at least 0. arXiv 2405.13820 is known to us without their values: the
    defaults are ours, by the sweep in LOG.md, for trainings as short as its; longer ones and a larger p want less.
    """

    retention: float = 0.5
    enhancing_share: float = 0.3
    mitigating_share: float = 0.3
    alpha: float = 3.0
    beta: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("retention", "enhancing_share", "mitigating_share"):
            if not 0 <= (given := getattr(self, name)) <= 1:
                raise ValueError(f"{name}: got {given!r}, allowed is a share from 0 to 1")
        for name in ("alpha", "beta"):
            if not 0 <= (given := getattr(self, name)) < float("inf"):
                raise ValueError(f"{name}: got {given!r}, allowed is a finite number of at least 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: got {self.seed!r}, allowed is a whole number from 0 to 4294967295")
