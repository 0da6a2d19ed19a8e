"""What `rheostat reward` shows: a fitted model's card in lines, a check's figures in tables, its curve in a picture."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table


def card_lines(card: Mapping[str, Any]) -> Sequence[str]:
    """What was learned from what, and how well."""
    figures = card["measured_on_held_out"]
    name = "pairwise accuracy" if card["kind"] == "pairs" else "AUC"
    figure = figures.get("pairwise_accuracy" if card["kind"] == "pairs" else "auc")
    return (
        f"Fitted on {card['train_rows']} {card['kind']} of {card['data']['name']}, {card['steps']} steps, "
        f"{card['seconds']:.0f} s.",
        f"On {card['held_out_rows']} held out: {name} {_interval(figure)}; scores from {figures['low']:.3g} to "
        f"{figures['high']:.3g}, higher is better.",
    )


def check_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """The figures, then the calibration curve."""
    table = _table("figure", "value")
    for name, value in _figures(document):
        table.add_row(name, value)
    yield table
    curve = _table("predicted", "observed", document["data"]["kind"])
    curve.title = "Calibration curve"
    curve.title_justify = "left"
    for each in document["calibration"]["bins"]:
        curve.add_row(f"{each['predicted']:.3f}", f"{each['observed']:.3f}", str(each["count"]))
    yield curve


def calibration_picture(document: Mapping[str, Any]) -> bytes:
    """The calibration curve as a PNG."""
    from matplotlib.axes import Axes

    from rheostat.canvas import LIGHT, Panel, Theme, figure, to_png

    bins = document["calibration"]["bins"]
    lowest = 0.5 if document["data"]["kind"] == "pairs" else 0.0

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot([lowest, 1], [lowest, 1], color=theme.muted, linewidth=0.9, linestyle=(0, (3, 3)))
        predicted, observed = [each["predicted"] for each in bins], [each["observed"] for each in bins]
        axes.plot(predicted, observed, color=theme.hues[0], marker="o", markersize=4, linewidth=1.4)
        axes.set_xlabel("predicted probability", color=theme.muted)
        axes.set_ylabel("observed share", color=theme.muted)
        axes.tick_params(colors=theme.muted)
        for spine in axes.spines.values():
            spine.set_color(theme.muted)

    panel = Panel(f"{document['data']['name']}, {document['data']['rows']} {document['data']['kind']}", 3.6, 3.6, draw)
    return to_png(figure([[panel]], theme=LIGHT))


def _figures(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, scores = document["data"], document["scores"]
    yield "data", f"{data['rows']} {data['kind']} of {data['name']}"
    if data["kind"] == "pairs":
        yield "pairwise accuracy", _interval(document["pairwise_accuracy"])
        yield "ties", str(document["ties"])
    else:
        yield "AUC", _interval(document["auc"])
        yield f"balanced accuracy at {document['threshold']:g}", f"{document['balanced_accuracy']:.3f}"
        yield "positives, negatives", f"{document['positives']}, {document['negatives']}"
    yield "calibration, expected error", f"{document['calibration']['error']:.3f}"
    yield "scores", f"{scores['low']:.4g} to {scores['high']:.4g}, mean {scores['mean']:.4g}"
    yield "distinct scores", str(scores["distinct"])
    sign = document["sign"]
    better = "higher" if sign["higher_is_better"] else "lower"
    yield "sign", f"{better} is better" + (" — LOOKS WRONG" if sign["looks_wrong"] else "")
    found = document.get("agreement")
    if found is not None:
        yield "agreement, Spearman ρ", _number(found["spearman"])
        yield "agreement, Kendall τ", _number(found["kendall"])
        if "pairs_ordered_alike" in found:
            yield "pairs ordered alike", f"{found['pairs_ordered_alike']:.3f}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _interval(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['value']:.3f} (95 % interval {figure['low']:.3f} to {figure['high']:.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
