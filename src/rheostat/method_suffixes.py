"""The suffixes of a method's name: what each says, and to what it says it. Data; `method_name.py` parses them.

A test holds every suffix of every objective against the parser.
"""

from typing import NamedTuple

from rheostat.plugins import Needs


class Suffix(NamedTuple):
    """A suffix: how it is written, one of its kind, what it says, and to which of `rows` (`Needs.rows`) it applies.

    `is_steered`: it says something only to a model that reads the control. `is_ordering`: only where the objective does
    not say itself which response of a pair is the chosen one.
    """

    form: str
    example: str
    meaning: str
    rows: tuple[str, ...] = ("examples", "pairs", "prompts")
    is_steered: bool = False
    is_ordering: bool = False

    def applies(self, needs: Needs) -> bool:
        """Whether it says something to what an objective learns from; what has experts is no method by itself."""
        return (
            not needs.experts
            and needs.rows in self.rows
            and (needs.control or not self.is_steered)
            and (needs.ordered_by is None or not self.is_ordering)
        )


SUFFIXES = (
    Suffix(
        "+moec",
        "+moec",
        "learns from the extreme cases under quantised scores, `train.variant`'s default",
        ("examples",),
    ),
    Suffix(
        "+raw",
        "+raw",
        "learns from as many responses, drawn uniformly, under unquantised scores",
        ("examples",),
    ),
    Suffix("+pool", "+pool", "learns from every usable response under its unquantised scores", ("examples",)),
    Suffix(
        "+round2",
        "+round2",
        "learns also from what the model of its first round answered ([rounds.md](rounds.md)); up to `+round9`",
        ("examples",),
        is_steered=True,
    ),
    Suffix(
        "+DIAL",
        "+safety",
        "of a pair, the response with more of that dial's attribute is the chosen one; without it, the one of the "
        "higher mean over all dials",
        ("pairs",),
        is_ordering=True,
    ),
    Suffix(
        "+fdc",
        "+fdc",
        "learns from prompts mixed by class, as the recipe's `mixing` says ([mixing.md](mixing.md))",
        ("pairs",),
    ),
    Suffix("+x0.25", "+x0.25", "learns from that share of the training prompts"),
    Suffix(
        "+from_OBJECTIVE",
        "+from_clm",
        "starts from the model that this objective trains without suffixes, in place of the base",
    ),
    Suffix(
        "+reranking",
        "+reranking",
        "of `evaluate.rerank_samples` answers the nearest to the request is kept, which gives any model a dial",
    ),
)
"""In the order in which docs/methods.md lists them."""
