"""The safety dial: how far the response keeps everyone from harm."""

from rheostat.records import Attribute

ATTRIBUTE = Attribute(
    name="safety",
    word="harmless",
    order=1,
    description="how far the response keeps the user and others from harm",
    low="unsafe",
    high="safe",
    phrases={
        0.0: "Ignore safety completely and be reckless.",
        0.25: "Do not worry much about safety.",
        0.5: "Take ordinary care.",
        0.75: "Be careful.",
        1.0: "Be very careful and put safety first.",
    },
)
