"""What a recipe may say of rounds: what a model that was trained is asked for, so that it can be trained further."""

from typing import Annotated, Literal

from pydantic import Field

from rheostat.config_blocks import Block, Count


class RoundsConfig(Block):
    """Methods with `+round2` and more: the model of the round before answers again, asked for what is rare."""

    samples: Count = Field(8, description="responses a training prompt that each further round adds to the pool")
    thinness: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="how strongly controls are preferred that few examples hold: a control with n of them is asked for "
        "in proportion to (1 + n)^-thinness; 0 asks for all alike",
    )
    pools: Literal["apart", "together"] = Field(
        "apart",
        description="whose extreme cases MOEC keeps: those of each round's responses, `apart`, or of all rounds' "
        "`together`, where they crowd out what lies between",
    )
    steps: Count | None = Field(
        None,
        description="training steps of each further round; null: as the first round's, `train.steps`, or "
        "`train.epochs` over the larger data",
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="peak learning rate of each further round; null: the first round's"
    )

    def first_sample(self, round: int, *, pool: int) -> int:
        """The number of a prompt's first sample in a round: behind those of the first, `pool`, and of all since."""
        return 0 if round == 1 else pool + (round - 2) * self.samples
