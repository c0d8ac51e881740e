"""Charts of the report page as SVG: text as text, with a title and a description for screen readers."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

# colours that colour-blind readers tell apart (Okabe and Ito), with a marker each for print in grey
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#000000", "^"), ("#009E73", "D"))
WIDTH = 4.4  # inches, so that the text stays readable on a phone
LINE = 0.32  # inches of height for a line of a chart
SETTINGS: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11, "axes.spines.right": False,
            "axes.spines.top": False, "axes.grid": True, "grid.alpha": 0.3}  # fmt: skip


def chart_of_slices(
    prefix: str,
    title: str,
    axis: str,
    slices: Sequence[str],
    values: Mapping[str, Sequence[tuple[float, float, float]]],
) -> str:
    """Draw a metric by slice, a line per slice and a marker per prediction with its interval.

    Args:
        prefix: of the ids in the SVG, unique on the page.
        title: of the chart.
        axis: name and unit of the metric.
        slices: names of the slices, from top to bottom.
        values: {prediction: (value, lower bound, upper bound) per slice}; NaN where there is none.

    Returns an <svg> element.
    """
    figure, axes = _new_figure(len(slices))
    for position, (prediction, bounds) in enumerate(values.items()):
        colour, marker = STYLES[position % len(STYLES)]
        value, low, high = np.array(bounds, dtype=float).T
        heights = np.arange(len(slices)) + 0.16 * (position - (len(values) - 1) / 2)
        axes.hlines(heights, low, high, color=colour, linewidth=2, clip_on=False)
        axes.plot(value, heights, marker, color=colour, markersize=6, label=prediction, clip_on=False)
    axes.set_yticks(range(len(slices)), slices)
    axes.set_ylim(len(slices) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(axis)
    if len(values) > 1:
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    texts = []
    for prediction, bounds in values.items():
        pairs = [(label, value) for label, (value, *_) in zip(slices, bounds, strict=True) if not np.isnan(value)]
        texts.append(f"{prediction}: " + ", ".join(f"{label} {value:.3f}" for label, value in pairs))
    return _to_svg(figure, prefix, title, f"{axis}. " + "; ".join(texts))


def chart_of_training(prefix: str, title: str, history: Sequence[Mapping[str, float]], metrics: Sequence[str]) -> str:
    """Draw metrics over the epochs of a training.

    Args:
        prefix: of the ids in the SVG, unique on the page.
        title: of the chart.
        history: one dict of numbers per epoch, with 'epoch'.
        metrics: names of the values to draw.

    Returns an <svg> element.
    """
    figure, axes = _new_figure(6)
    epochs = [entry["epoch"] for entry in history]
    for (colour, marker), metric in zip(STYLES, metrics, strict=False):
        axes.plot(epochs, [entry.get(metric, np.nan) for entry in history], marker=marker, color=colour, label=metric)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    first, last = history[0], history[-1]
    ends = ", ".join(f"{name} from {first.get(name, np.nan):.3f} to {last.get(name, np.nan):.3f}" for name in metrics)
    return _to_svg(figure, prefix, title, f"Over {len(history)} epochs: {ends}")


def _new_figure(lines: int) -> tuple[matplotlib.figure.Figure, Axes]:
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(WIDTH, 1.2 + LINE * lines), layout="constrained")
        return figure, figure.add_subplot()


def _to_svg(figure: matplotlib.figure.Figure, prefix: str, title: str, description: str) -> str:
    content = io.StringIO()
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": prefix}):  # the same ids each time
        figure.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    # ids of several charts on one page must differ
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    labels = f' role="img" aria-labelledby="{prefix}-title {prefix}-description">'
    name = f'<title id="{prefix}-title">{escape(title)}</title>'
    return f'{head}{labels}{name}<desc id="{prefix}-description">{escape(description)}</desc>{body}'
