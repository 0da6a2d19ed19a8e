"""A method's name as a recipe writes it: what is tuned, on which examples, whether it is reranked. Pure."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

from rheostat import plugins
from rheostat.errors import did_you_mean

Variant = Literal["moec", "raw"]


class TrainingData(BaseModel):
    """Which examples a tuned method learns from: a variant, of the first `share` of the training prompts."""

    model_config = ConfigDict(frozen=True)

    variant: Variant
    share: float = 1.0

    def __str__(self) -> str:
        return self.variant if self.share == 1 else f"{self.variant}+x{self.share:g}"


class MethodName(BaseModel):
    """A method's name taken apart.

    `exmate+raw+reranking` is objective `exmate`, variant `raw`, reranked; `exmate+x0.25` learned from a quarter of the
    training prompts.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    method: str
    objective: str | None = None
    variant: Variant | None = None
    share: float = 1.0
    reranking: bool = False

    def data(self, default: Variant) -> TrainingData:
        """The examples that a tuned method learns from, where `default` is the recipe's variant."""
        return TrainingData(variant=self.variant or default, share=self.share)

    @property
    def is_dialled_model(self) -> bool:
        """Whether it is a tuned model by itself, as is exported and served: neither untuned nor reranked."""
        return self.objective is not None and not self.reranking

    @classmethod
    def parse(cls, name: str) -> "MethodName":
        """Parse; raises `ValueError` naming what is allowed."""
        head, *suffixes = name.split("+")
        trainable = plugins.available("objectives")
        free = [method for method in plugins.available("methods") if method != "tuned"]
        if head not in trainable + free:
            raise ValueError(
                f"got {name!r}, allowed are {', '.join(free + trainable)}{did_you_mean(head, free + trainable)}"
            )
        allowed = ("raw", "moec", "reranking") if head in trainable else ()
        variants = [suffix for suffix in suffixes if suffix in ("raw", "moec")]
        shares = [suffix for suffix in suffixes if re.fullmatch(r"x0\.\d+", suffix) and float(suffix[1:]) > 0]
        if (
            any(suffix not in allowed and (not allowed or suffix not in shares) for suffix in suffixes)
            or max(len(variants), len(shares)) > 1
            or len(set(suffixes)) < len(suffixes)
        ):
            listed = f"{', '.join(allowed)} and x0.25 (a share of the prompts)" if allowed else "none"
            raise ValueError(f"got {name!r}, allowed suffixes of {head} are {listed}")
        return cls(
            name=name,
            method="tuned" if head in trainable else head,
            objective=head if head in trainable else None,
            variant=variants[0] if variants else None,
            share=float(shares[0][1:]) if shares else 1.0,
            reranking="reranking" in suffixes,
        )
