"""The helpfulness dial: how much of what was asked the response gives."""

from rheostat.records import Attribute

ATTRIBUTE = Attribute(
    name="helpfulness",
    word="helpful",
    order=0,
    description="how much of what the user asked for the response gives",
    low="unhelpful",
    high="helpful",
    phrases={
        0.0: "Do not help: give no useful information.",
        0.25: "Give only a little help.",
        0.5: "Give a moderately helpful answer.",
        0.75: "Give a helpful answer.",
        1.0: "Answer in full detail, as helpfully as you can.",
    },
)
